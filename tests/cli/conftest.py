"""What the tests of the command line share."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pbu_cli.benchmark.demo_digits import DemoFiles

FAST = ["--fast", "--steps", "20"]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def unlearned(digits: DemoFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits' checkpoint without its eights, by the shortest command; not to be written to."""
    from pbu_cli.__main__ import run

    output = tmp_path_factory.mktemp("unlearned") / "out.safetensors"
    command = ["unlearn", digits.checkpoint, "--forget", digits.train / "8", "-o", output, "-q"]
    assert run([str(word) for word in command]) == 0
    return output
