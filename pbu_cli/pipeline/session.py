"""The log of a run, its progress display, and its standard input."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO

from pbu_cli import __version__
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.settings import SCHEMA


class Session:
    """The log of one run, its progress, and where the paths of `-` come from.

    This one shows nothing, for library users; the command line has one that draws bars.
    """

    def __init__(self, log: InferenceLog | None = None, stdin: BinaryIO | None = None) -> None:
        self.log = InferenceLog() if log is None else log
        self.stdin = stdin

    def progress(
        self, what: str, total: int | None
    ) -> AbstractContextManager[Callable[[int, str], None]]:
        """Show how far a phase is; the function given takes the number done and a remark."""
        return nullcontext(lambda done, remark: None)

    def heading(self, command: str) -> dict[str, Any]:
        """The first entries of every JSON document."""
        return {
            "schema": SCHEMA,
            "pbu": __version__,
            "command": command,
            "inferred": self.log.entries(),
            "warnings": self.log.warnings,
        }


def stopwatch() -> Callable[[], float]:
    """A function that returns the seconds since it was called last."""
    last = time.perf_counter()

    def elapsed() -> float:
        nonlocal last
        now = time.perf_counter()
        seconds, last = now - last, now
        return seconds

    return elapsed
