"""What every command does alike: open a session on the screen, show what is inferred, finish."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pbu_cli.errors import CriterionNotMet, printable

if TYPE_CHECKING:
    from pbu_cli.cli.console import Screen
    from pbu_cli.pipeline.session import Session

logger = logging.getLogger(__name__)

LOG_FORMAT = "%(relativeCreated)7.0f ms  %(name)s: %(message)s"


def open_session(as_json: bool, quiet: bool, verbose: bool = False) -> tuple[Screen, Session]:
    """The screen of one command, and the session that shows its inferences and progress on it.

    verbose: log what the package does, by Python's logging, to stderr.
    """
    from pbu_cli.cli.console import Screen
    from pbu_cli.inputs.inferred import InferenceLog
    from pbu_cli.pipeline.session import Session

    keep_libraries_quiet()
    if verbose:
        log_to_stderr()
    screen = Screen(as_json=as_json, quiet=quiet)

    class ScreenSession(Session):
        def progress(
            self, what: str, total: int | None
        ) -> AbstractContextManager[Callable[[int, str], None]]:
            if verbose:  # the lines of the log would break the bar
                return super().progress(what, total)
            return screen.progress(what, total)

    log = InferenceLog(
        lambda inferred: screen.note(**inferred.entry()),
        screen.warn,
    )
    return screen, ScreenSession(log, getattr(sys.stdin, "buffer", None))


class _PrintableFormatter(logging.Formatter):
    """One harmless line a message: names of tensors and files come from strangers."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), 4000)


def keep_libraries_quiet() -> None:
    """Keep the warnings and logs of torch and other libraries off stderr, where only pbu writes.

    A warning becomes a line of the package's log, which `--verbose` shows.
    """
    root = logging.getLogger()
    if not root.handlers:  # logging writes warnings to stderr where there is no handler at all
        root.addHandler(logging.NullHandler())

    def log(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        logger.debug("%s:%d: %s: %s", filename, lineno, category.__name__, message)

    warnings.showwarning = log


def log_to_stderr() -> None:
    """Have the package's loggers write to stderr, once."""
    package = logging.getLogger("pbu_cli")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_PrintableFormatter(LOG_FORMAT))
        package.addHandler(handler)
    package.setLevel(logging.DEBUG)


def finish_dry(screen: Screen, session: Session, command: str, place: Path) -> None:
    """Say what a dry run would write."""
    screen.line(f"dry run: nothing was written; would write {place}")
    screen.document({**session.heading(command), "output": str(place), "dry_run": True})


def finish(screen: Screen, document: dict[str, Any], failure: str) -> None:
    """Print the JSON document of a command, and raise CriterionNotMet where there is a failure.

    The document then has the error in it.
    """
    from pbu_cli.cli.console import error_document

    if not failure:
        screen.document(document)
        return
    error = CriterionNotMet(failure)
    screen.document({**document, **error_document(failure, error.exit_code)})
    raise error
