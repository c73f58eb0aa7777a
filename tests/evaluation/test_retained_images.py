"""Retained images: folders of classes, lists of paths and labels, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pbu_cli.benchmark.demo_digits import DemoFiles
from tests.conftest import Ran


def test_a_list_of_paths_and_labels_gives_the_scores_of_the_folders(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    lines = [f"{p},{p.parent.name}\n" for p in sorted(digits.test.rglob("*.png"))]
    listed = tmp_path / "retain.csv"
    listed.write_text("".join(lines))
    scores = [
        json.loads(
            pbu("evaluate", digits.checkpoint, "--forget", digits.test / "8", "--retain", retain,
                "--json").out
        )["scores"]
        for retain in (digits.test, listed)
    ]  # fmt: skip
    assert scores[0] == scores[1]


@pytest.mark.parametrize("line", ["x.png", "x.png,ten", "x.png,10", "a,b,3", "\0"])
def test_a_list_that_cannot_be_understood_is_an_error_of_one_line(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, line: str
) -> None:
    (tmp_path / "retain.csv").write_text(line)
    done = pbu("evaluate", digits.checkpoint, "--forget", digits.test / "8", "--retain",
               tmp_path / "retain.csv", "-q")  # fmt: skip
    assert done.code == 4
    assert len(done.err.strip().splitlines()) == 1


def test_a_list_may_start_with_a_bom_and_an_impossible_path_is_an_error(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    image = next((digits.test / "3").iterdir())
    listed = tmp_path / "list.csv"
    listed.write_bytes(b"\xef\xbb\xbf" + f"{image},3\n".encode())
    command = ["evaluate", digits.checkpoint, "--forget", digits.test / "8", "-q", "--retain"]
    assert pbu(*command, listed).code == 0
    listed.write_bytes(f"{image},3\nno\0name.png,3\n".encode())
    done = pbu(*command, listed)
    assert done.code == 4, done.err
    assert "1 of 2 images" in done.err or "NUL" in done.err  # up to Python 3.10 csv refuses it
    done = pbu(*command, "x" * 5000)
    assert done.code == 4
    assert "unexpected error" not in done.err


def test_folders_without_class_names_are_labelled_in_alphabetical_order(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    names = "abcdefghij"
    real = tmp_path / "real"
    for digit, name in enumerate(names):
        shutil.copytree(digits.test / str(digit), real / name)
    command = ["evaluate", digits.checkpoint, "--forget", digits.test / "8", "--json", "-q"]
    by_name = json.loads(pbu(*command, "--retain", digits.test).out)["scores"]
    by_alphabet = json.loads(pbu(*command, "--retain", real).out)
    assert by_alphabet["scores"] == by_name
    assert ("retained", "classes 0 to 9 are a to j") in {
        (entry["what"], entry["value"]) for entry in by_alphabet["inferred"]
    }
    (real / "d").rename(real / "8")
    done = pbu(*command, "--retain", real)  # in alphabetical order it would be 0
    assert done.code == 4
    assert "8 names class 8 but would be 0" in done.err
    (real / "8").rename(real / "d")
    shutil.rmtree(real / "a")
    done = pbu(*command, "--retain", real)
    assert done.code == 4
    assert "alphabetical" in done.err
