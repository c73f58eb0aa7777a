"""The demo as a newcomer runs it: one process, real files."""

from __future__ import annotations

import subprocess
import sys


def test_the_demo_runs_to_its_tables_and_writes_what_it_says(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pbu_cli", "demo", "--output", str(tmp_path / "demo")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for command in ("fisher", "unlearn", "evaluate"):
        assert f"$ pbu {command} " in done.stderr
    assert "Where the forget images go" in done.stdout
    written = {path.name for path in (tmp_path / "demo").iterdir()}
    assert written == {
        "digits.safetensors", "digits.fisher.safetensors", "digits.unlearned.safetensors",
        "train", "test",
    }  # fmt: skip
    again = subprocess.run(
        [sys.executable, "-m", "pbu_cli", "demo", "--output", str(tmp_path / "demo")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 2
    assert "not empty" in again.stderr
