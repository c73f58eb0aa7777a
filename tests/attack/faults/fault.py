"""One fault: the inputs that show it, the command, and what is right."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.measure.archives import SHARED

TRIALS = SHARED / "trials"
CHECKPOINTS = SHARED / "checkpoints"


@dataclass(frozen=True)
class Place:
    """Where a fault is tried.

    folder: an empty folder, in which the command runs. package: the folder of the checkout whose
    `pbu_cli` runs. data: the unpacked images of MNIST and CIFAR-10, `data/train/<class>/` and
    `data/test/<class>/` (digits 0 to 9, and airplane to truck).
    """

    folder: Path
    package: Path
    data: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.package), "COLUMNS": "100"}

    def pbu(self, *arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command line of that checkout in `folder`, for the preparation."""
        return subprocess.run(
            [sys.executable, "-m", "pbu_cli", *map(str, arguments)],
            cwd=self.folder, env=self.environment, timeout=timeout, check=False,
            capture_output=True, text=True,
        )  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A command that did something wrong at f14c514.

    point: its number in the review. title: the fault in a few words. arguments: of `pbu`; relative
    paths are relative to the folder of the place. prepare: puts the inputs into that folder. code:
    the exit code that is right. says: text that stderr or stdout then has to have. check: what the
    folder has to look like afterwards, an assertion, called with the place. more: environment.
    """

    point: int
    title: str
    arguments: tuple[object, ...]
    code: int
    says: str = ""
    prepare: Callable[[Place], object] = lambda place: None
    check: Callable[[Place], object] = lambda place: None
    more: Mapping[str, str] = field(default_factory=dict)
