"""The order in which folders are named changes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pbu_cli.benchmark.demo_digits import DemoFiles
from tests.cli.conftest import FAST, sha256
from tests.conftest import Ran


@pytest.mark.parametrize("labels", [False, True])
def test_the_order_and_spelling_of_the_folders_change_no_byte(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, labels: bool
) -> None:
    folders = {"3": digits.train / "3", "8": digits.train / "8"}
    spelled = {"3": f"{digits.train}/./3/", "8": os.path.relpath(digits.train / "8")}
    digests = set()
    for number, (order, paths) in enumerate((("38", folders), ("83", folders), ("83", spelled))):
        output = tmp_path / f"{number}.safetensors"
        chosen = [word for digit in order for word in ("--forget", paths[digit])]
        if labels:
            chosen += [word for digit in order for word in ("--label", digit)]
        done = pbu("unlearn", digits.checkpoint, *chosen, "-o", output, "-q", *FAST)
        assert done.code in (0, 5), done.err
        digests.add(sha256(output))
    assert len(digests) == 1


def test_a_label_stays_beside_its_folder_whatever_the_order(
    pbu: Callable[..., Ran], digits: DemoFiles
) -> None:
    folders = ["--forget", digits.train / "8", "--forget", digits.train / "3"]
    labels = ["--label", "3", "--label", "8"]
    done = pbu("fisher", digits.checkpoint, *folders, *labels, "--mean", "0.5", "--std", "0.5",
               "--dry-run", "--json")  # fmt: skip
    found = [e for e in json.loads(done.out)["inferred"] if e["what"] == "label"]
    assert [(e["value"], e["source"].partition(";")[0]) for e in found] == [
        ("8", "--label"), ("3", "--label"),
    ]  # fmt: skip
    # The labels are wrong, as they were given: hardly any image is recognised as its label.
    assert all(float(e["source"].split(" for ")[1].split(" %")[0]) < 5 for e in found)
