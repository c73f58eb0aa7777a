"""What every command does alike: what is said as it runs, the prepared, the document, the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbu_cli import __version__
from pbu_cli.errors import CriterionNotMet
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.settings import SCHEMA

if TYPE_CHECKING:
    from pbu_cli.cli.console import Screen
    from pbu_cli.inputs.prepare import UnlearningInputs
    from pbu_cli.settings import InputOptions


def stopwatch() -> Callable[[], float]:
    """A stopwatch: seconds since the last reading."""
    last = time.perf_counter()

    def lap() -> float:
        nonlocal last
        now = time.perf_counter()
        seconds, last = now - last, now
        return seconds

    return lap


def open_session(as_json: bool, quiet: bool) -> tuple[Screen, Log]:
    from pbu_cli.cli.console import Screen

    screen = Screen(as_json=as_json, quiet=quiet)
    return screen, Log(screen)


class Log:
    """What was inferred and warned of, shown as it happens and kept for the JSON document."""

    def __init__(self, screen: Screen) -> None:
        self.entries: list[dict[str, str]] = []
        self.warnings: list[str] = []
        self._screen = screen

    def warn(self, messages: Iterable[str]) -> None:
        for message in messages:
            self.warnings.append(message)
            self._screen.warn(message)

    def __call__(self, what: str, value: str, source: str) -> None:
        self.entries.append({"what": what, "value": value, "source": source})
        self._screen.note(what, value, source)


def prepare_inputs(
    checkpoint: Path,
    forget: list[str],
    options: InputOptions,
    layers: str,
    log: Log,
    screen: Screen,
) -> UnlearningInputs:
    from pbu_cli.inputs.loaded_model import load_model
    from pbu_cli.inputs.prepare import assemble

    loaded = load_model(checkpoint, options, log)
    with screen.progress("decoding", None) as bar:
        prepared = assemble(
            loaded,
            forget,
            options,
            log,
            layers=layers,
            stdin=getattr(sys.stdin, "buffer", None),
            decoding=lambda count: bar(count, "images"),
        )
    log.warn(prepared.warnings)
    return prepared


def beside(checkpoint: Path, ending: str) -> Path:
    return checkpoint.parent / (checkpoint.stem + ending)


def finish_dry(screen: Screen, log: Log, command: str, place: Path) -> None:
    screen.line(f"dry run: nothing was written; would write {place}")
    screen.document({**heading(command, log), "output": str(place), "dry_run": True})


def finish(screen: Screen, document: dict[str, Any], failure: str) -> None:
    """Print the document; where a criterion does not hold, with the error in it, and raise that."""
    from pbu_cli.cli.console import error_document

    error = CriterionNotMet(failure)
    screen.document({**document, **(error_document(failure, error.exit_code) if failure else {})})
    if failure:
        raise error


def heading(command: str, log: Log) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "pbu": __version__,
        "command": command,
        "inferred": log.entries,
        "warnings": log.warnings,
    }
