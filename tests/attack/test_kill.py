"""A few rounds of `kill.py`, all of them where a run writes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pbu_cli.benchmark.demo_digits import DemoFiles
from tests.attack.kill import Run, kill_at_random

pytestmark = pytest.mark.slow  # runs commands from start to end


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_run_leaves_the_old_file_or_the_new_one_with_its_record(
    digits: DemoFiles, tmp_path: Path, number: int
) -> None:
    run = Run(tmp_path, digits.train / "8", digits.checkpoint)
    tally = kill_at_random(run, kills=2, seed=1, number=number, late=True)
    assert not tally.faults
    assert tally.found.total() == 2
