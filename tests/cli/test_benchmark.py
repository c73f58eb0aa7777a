"""`pbu benchmark`: resumed after a kill, refused before anything is written, and rendered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pbu_cli.benchmark.demo_digits import write_digits
from pbu_cli.benchmark.methods import NAMES
from tests.conftest import Ran
from tests.networks import small_cnn

ARCH = f"{small_cnn.__file__}:small_cnn"


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's digits; no network is trained on them."""
    return write_digits(tmp_path_factory.mktemp("benchmark")).train.parent


def arguments(data_root: Path, out: Path, *more: str) -> list[str]:
    return [
        "benchmark", "--dataset", "folder", "--data-root", str(data_root),
        "--images-per-class", "40", "--arch", ARCH, "--epochs", "2",
        "--device", "cpu", "--out", str(out), "--json", *more,
    ]  # fmt: skip


def command(data_root: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "pbu_cli", *arguments(data_root, out, *more)]


def rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in document["rows"]]


def written(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.glob("*/seed*.json")}


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_ends_as_an_unbroken_one(
    data_root: Path, tmp_path: Path
) -> None:
    grid = ("--classes", "8,3", "--methods", "all")
    unbroken = subprocess.run(
        command(data_root, tmp_path / "a", *grid), capture_output=True, text=True, check=True
    )
    whole = json.loads(unbroken.stdout)
    cells = 2 * (len(NAMES) + 1)
    assert len(whole["cells"]) == cells

    killed = subprocess.Popen(
        command(data_root, tmp_path / "b", *grid),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while len(written(tmp_path / "b")) < 7 and time.monotonic() < deadline:
            assert killed.poll() is None
            time.sleep(0.005)
    finally:
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    before = written(tmp_path / "b")
    assert 7 <= len(before) < cells
    assert all(json.loads(path.read_text())["outcomes"] for path in before)

    again = subprocess.run(
        command(data_root, tmp_path / "b", *grid), capture_output=True, text=True, check=True
    )
    after = written(tmp_path / "b")
    assert before.items() <= after.items()  # none of them was written again
    assert len(after) == cells
    assert again.stderr.count("A_Df") == cells - len(before)  # a line for each computed cell
    assert rows(json.loads(again.stdout)) == rows(whole)


@pytest.mark.slow
def test_the_table_stands_beside_the_papers(
    data_root: Path, tmp_path: Path, pbu: Callable[..., Ran]
) -> None:
    named = tmp_path / "mnist"
    named.symlink_to(data_root)
    flags = (
        "benchmark", "--dataset", "folder", "--data-root", named, "--images-per-class", "10",
        "--model", "resnet34", "--epochs", "1", "--classes", "8", "--methods", "row-shift",
        "--device", "cpu", "--out", tmp_path / "out", "--plot", tmp_path / "p.svg",
    )  # fmt: skip
    done = pbu(*flags)
    assert done.code == 0, done.err
    assert "99.73 ± 0.21" in done.out  # what the paper reports for the original
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    again = pbu(*flags)
    assert "of 2" not in again.err
    assert again.out == done.out


@pytest.mark.parametrize(
    ("flags", "expected", "code"),
    [
        (("--methods", "pbu,magic"), "--methods magic: expected all, or some of retrain", 2),
        (("--classes", "ten"), "--classes ten: expected a class from 0 to 9", 2),
        (("--plot", "a.png"), "expected a name ending in .svg", 2),
        (("--plot", "gone/a.svg"), "gone: no such folder for the output", 2),
        (("--dataset", "mnist"), "--data-root, or --download", 4),
        (("--arch", "resnet0"), "expected a torchvision classifier", 2),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(
    data_root: Path,
    tmp_path: Path,
    pbu: Callable[..., Ran],
    flags: tuple[str, str],
    expected: str,
    code: int,
) -> None:
    given: dict[str, object] = {
        "--dataset": "folder",
        "--data-root": data_root,
        "--arch": ARCH,
        "--images-per-class": 5,
        "--out": tmp_path / "out",
    }
    given |= {flags[0]: flags[1]}
    done = pbu("benchmark", *(part for pair in given.items() for part in pair))
    assert (done.code, done.err.count("error: ")) == (code, 1)
    assert expected in done.err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_downloads_nothing(tmp_path: Path, pbu: Callable[..., Ran]) -> None:
    done = pbu("benchmark", "--dataset", "mnist", "--data-root", tmp_path, "--download",
               "--dry-run", "--classes", "8", "--model", "resnet18")  # fmt: skip
    assert done.code == 4
    assert not list(tmp_path.iterdir())


def test_a_dry_run_trains_nothing(data_root: Path, tmp_path: Path, pbu: Callable[..., Ran]) -> None:
    done = pbu(*arguments(data_root, tmp_path / "out", "--dry-run", "--classes", "8,3,8"))
    document = json.loads(done.out)
    assert done.code == 0
    assert document["dry_run"] is True
    assert document["protocol"]["classes"] == [8, 3]
    assert "passes of an image" in done.err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_where_nothing_can_be_written(
    data_root: Path, tmp_path: Path, pbu: Callable[..., Ran]
) -> None:
    (tmp_path / "file").write_text("")
    done = pbu(*arguments(data_root, tmp_path / "file" / "out", "--dry-run"))
    assert done.code == 1
    assert "--out" in done.err
