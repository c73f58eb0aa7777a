"""What the user sees: tables and JSON on stdout, progress, notes and errors on stderr.

The only importer of rich. Everything shown passes through `printable` as plain text, never as
rich markup, so that nothing from a file can escape into the terminal.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pbu_cli import __version__
from pbu_cli.errors import PbuError, printable
from pbu_cli.io.strict_json import to_json
from pbu_cli.settings import SCHEMA

PIPED_WIDTH = 200  # columns; a pipe has no width, and wrapped cells cannot be cut by column


class Screen:
    """Where one command writes. With `as_json` stdout gets one document and nothing else."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.out = _console(sys.stdout)
        self.err = _console(sys.stderr)

    def note(self, what: str, value: str, source: str) -> None:
        """One thing that was inferred, and from what evidence."""
        if not self.quiet:
            line = Text(f"{what + ':':<15}", "bold")
            line.append(printable(value, 1000), "cyan").append(f"  ({printable(source, 1000)})")
            self.err.print(line, soft_wrap=True)

    def warn(self, message: str) -> None:
        line = Text("warning: ", "bold yellow").append(printable(message, 2000))
        self.err.print(line, soft_wrap=True)

    def echo(self, command: str) -> None:
        """A command about to be run, as the user could type it."""
        if not self.quiet:
            self.err.print()
            self.err.print(Text("$ ", "bold green").append(printable(command, 2000), "bold"))

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *captions: str
    ) -> None:
        """The first column to the left, the numbers of all others to the right; captions below."""
        if self.as_json:
            return
        terminal = self.out.is_terminal
        table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=terminal)
        for place, column in enumerate(columns):
            table.add_column(Text(column), justify="right" if place else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        # Title and caption stand outside: inside, rich would wrap them at the table's width.
        self.out.print(Text(printable(title), "bold"), soft_wrap=True)
        self.out.print(table)
        for line in captions:
            self.out.print(Text(printable(line), "dim"), soft_wrap=True)
        if captions or not terminal:
            self.out.print()

    def line(self, text: str) -> None:
        """One line of the result."""
        if not self.as_json:
            self.out.print(Text(printable(text, 2000)), soft_wrap=True)

    def document(self, content: Mapping[str, Any]) -> None:
        """The one JSON document of `--json`; NaN, which JSON lacks, becomes null."""
        if not self.as_json:
            return
        try:
            sys.stdout.write(to_json(content))
            sys.stdout.flush()
        except BrokenPipeError:
            silence(sys.stdout)
        except OSError as error:
            _lost(sys.stdout, error)

    @contextmanager
    def progress(self, what: str, total: int | None) -> Iterator[Callable[[int, str], None]]:
        """A bar on stderr; the function given takes how many are done now and a remark."""
        if self.quiet or not self.err.is_terminal:
            yield lambda done, remark: None
            return
        columns = (
            TextColumn("{task.description:<12}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}", markup=False),
        )
        with Progress(*columns, console=self.err, transient=True) as bar:
            task = bar.add_task(what, total=total, remark="")
            yield lambda done, remark: bar.update(task, completed=done, remark=remark)


def error_line(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    line = Text("error: ", "bold red").append(printable(message, 2000))
    _console(sys.stderr).print(line, soft_wrap=True)


def silence(stream: TextIO) -> None:
    """Send what is still written to a stream whose reader has left to nowhere.

    The work goes on and the exit code tells how it ended: whoever reads only the first lines of
    `pbu unlearn` wants the checkpoint all the same.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _lost(stream: Any, error: OSError) -> None:
    """A stream takes no more: PbuError of stdout; of stderr there is nobody left to tell."""
    silence(stream)
    if stream is not sys.stderr:
        raise PbuError(
            f"stdout: cannot be written: {error.strerror}; files that were to be written are whole,"
            " the results are lost"
        ) from None


class _Console(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError as error:
            _lost(self.file, error)

    def on_broken_pipe(self) -> None:
        silence(self.file)  # type: ignore[arg-type]  # rich's own would exit with 1


def error_document(message: str, exit_code: int) -> dict[str, Any]:
    """What `--json` prints where there is no result.

    >>> error_document("no such file", 3)["error"]
    {'message': 'no such file', 'exit_code': 3}
    """
    error = {"message": printable(message, 2000), "exit_code": exit_code}
    return {"schema": SCHEMA, "pbu": __version__, "error": error}


def percent(value: float | None) -> str:
    """Percent to two places, aligned; an unknown is said to be unknown, not zero.

    >>> percent(99.5), percent(None)
    ('99.50', 'unknown')
    """
    return "unknown" if value is None or math.isnan(value) else f"{value:.2f}"


def _console(stream: Any) -> Console:
    width = None if stream.isatty() else PIPED_WIDTH
    return _Console(file=stream, width=width, markup=False, highlight=False, emoji=False)
