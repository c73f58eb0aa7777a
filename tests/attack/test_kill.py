"""A few kills of `kill.py`, all of them where a run writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pbu_cli.benchmark.demo_digits import DemoFiles
from tests.attack.kill import kill_at_random

pytestmark = pytest.mark.slow  # runs commands from start to end


def test_a_killed_run_leaves_the_old_file_or_the_new_one(digits: DemoFiles, tmp_path: Path) -> None:
    tally = kill_at_random(
        digits.checkpoint, digits.train / "8", tmp_path, kills=3, seed=1, late=True
    )
    assert not tally.faults
    assert tally.found.total() == 3
