"""The same inputs, seed, device and versions: the same bytes, however many decode and compute."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pbu_cli.benchmark.demo_digits import DemoFiles
from tests.conftest import Ran

pytestmark = pytest.mark.slow  # runs commands from start to end


def unlearned(digits: DemoFiles, output: Path, threads: int, *flags: str) -> str:
    """sha256 of what a process of its own writes."""
    command = ["unlearn", str(digits.checkpoint), "--forget", str(digits.train / "8"), "-q",
               "--anchors", "64", "--steps", "10", "--device", "cpu", "-o", str(output),
               *flags]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pbu_cli", *command], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    assert done.returncode in (0, 5), done.stderr
    return hashlib.sha256(output.read_bytes()).hexdigest()


def test_runs_and_numbers_of_threads_give_the_same_bytes(digits: DemoFiles, tmp_path: Path) -> None:
    """With --deterministic, which computes on one thread; without it, more threads may round
    otherwise. `pytest -s` prints the digests."""
    found = {}
    for threads, run in ((1, 1), (1, 2), (2, 1)):
        output = tmp_path / f"{threads}-{run}.safetensors"
        found[threads, run] = unlearned(digits, output, threads, "--deterministic")
        print(f"{threads} threads, run {run}: {found[threads, run]}")
    assert len(set(found.values())) == 1


def test_decode_workers_change_nothing(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    # One thread decodes files as small as the digits' unless this limit is lowered.
    monkeypatch.setattr("pbu_cli.images.worker_threads.MIN_BYTES_FOR_THREADS", 0)
    for workers in (1, 4):
        monkeypatch.setattr(os, "cpu_count", lambda count=workers: count)
        output = tmp_path / f"{workers}.safetensors"
        done = pbu("unlearn", "--fast", digits.checkpoint, "--forget", digits.train / "8", "-q",
                   "--steps", "5", "-o", output)  # fmt: skip
        assert done.code in (0, 5)
        found.add(hashlib.sha256(output.read_bytes()).hexdigest())
        print(f"{workers} decode workers: {sorted(found)}")
    assert len(found) == 1
