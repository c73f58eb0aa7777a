"""`pbu evaluate` on a real checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pbu_cli.benchmark.demo_digits import DemoFiles
from tests.conftest import Ran


def test_an_output_remembers_what_it_forgot(
    pbu: Callable[..., Ran], digits: DemoFiles, unlearned: Any, tmp_path: Path
) -> None:
    """No folder name, no original, no flag: label and normalisation come from the metadata."""
    folder = tmp_path / "some images"
    shutil.copytree(digits.test / "8", folder)
    done = pbu("evaluate", unlearned, "--forget", folder)
    assert done.code == 0
    assert "unknown" in done.out
    notes = dict(line.split(":", 1) for line in done.err.splitlines())
    assert " 8  (the forgotten class in the metadata; the model predicts" in notes["label"]
    assert notes["normalisation"].endswith("(metadata written by pbu)")


@pytest.mark.parametrize(
    ("require", "code"), [("A_Df<=99", 0), ("A_Dr>=100.0", 5), ("A_Df>=50", 5), ("A_Dr=3", 2)]
)
def test_requirements_decide_the_exit_code(
    pbu: Callable[..., Ran], digits: DemoFiles, unlearned: Any, require: str, code: int
) -> None:
    done = pbu("evaluate", unlearned, "--forget", digits.test / "8", "--retain", digits.test,
               "--require", require)  # fmt: skip
    assert done.code == code
