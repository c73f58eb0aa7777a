"""What every command does alike: what is said as it runs, the case, the document, the end."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbu_cli import __version__
from pbu_cli.errors import CriterionNotMet
from pbu_cli.settings import SCHEMA

if TYPE_CHECKING:
    from pbu_cli.case import Case, Wanted
    from pbu_cli.console import Screen


def opened(as_json: bool, quiet: bool) -> tuple[Screen, Log]:
    from pbu_cli.console import Screen

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


def case_of(
    checkpoint: Path, forget: list[str], wanted: Wanted, layers: str, log: Log, screen: Screen
) -> Case:
    from pbu_cli.case import assemble, load_subject

    subject = load_subject(checkpoint, wanted, log)
    with screen.progress("decoding", None) as bar:
        case = assemble(
            subject,
            forget,
            wanted,
            log,
            layers=layers,
            stdin=getattr(sys.stdin, "buffer", None),
            decoding=lambda count: bar(count, "images"),
        )
    log.warn(case.warnings)
    return case


def beside(checkpoint: Path, ending: str) -> Path:
    return checkpoint.parent / (checkpoint.stem + ending)


def finish_dry(screen: Screen, log: Log, command: str, place: Path) -> None:
    screen.line(f"dry run: nothing was written; would write {place}")
    screen.document({**heading(command, log), "output": str(place), "dry_run": True})


def conclude(screen: Screen, document: dict[str, Any], failure: str) -> None:
    """Print the document; where a criterion does not hold, with the error in it, and raise that."""
    from pbu_cli.console import error_document

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
