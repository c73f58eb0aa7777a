"""What every command does alike: only pbu writes to stderr."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from pbu_cli.benchmark.demo_digits import DemoFiles

SAME_PADDING = """
import torch

def network():
    conv = torch.nn.Conv2d(1, 8, 2, padding="same")  # torch warns: it has to copy the input
    return torch.nn.Sequential(conv, torch.nn.Flatten(), torch.nn.Linear(512, 10))
"""


def test_only_pbu_writes_to_stderr(digits: DemoFiles, tmp_path: Path) -> None:
    """torch's warnings go to the log, which --verbose shows."""
    code = tmp_path / "net.py"
    code.write_text(SAME_PADDING)
    scope: dict[str, Any] = {}
    exec(SAME_PADDING, scope)
    checkpoint = tmp_path / "net.safetensors"
    save_file(scope["network"]().state_dict(), checkpoint)
    command = ["fisher", checkpoint, "--forget", digits.train / "8", "--arch", f"{code}:network",
               "--label", "8", "-q", "--dry-run", "--layers", "head"]  # fmt: skip
    quiet, verbose = (
        subprocess.run([sys.executable, "-m", "pbu_cli", *map(str, command), *more],
                       capture_output=True, text=True, check=True)
        for more in ([], ["--verbose"])
    )  # fmt: skip
    assert quiet.stderr == ""
    assert "UserWarning: Using padding='same'" in verbose.stderr
