"""What the user sees: tables and JSON on stdout, progress, notes and errors on stderr.

The only importer of rich. Everything shown passes through `printable` as plain text, never as
rich markup, so that nothing from a file can escape into the terminal.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import stat
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
from pbu_cli.errors import PbuError, Stopped, printable
from pbu_cli.io.strict_json import to_json
from pbu_cli.settings import SCHEMA

# A pipe has no width of its own. Rows up to this width are not wrapped: `cut` and
# `awk` can read them.
PIPED_WIDTH = 200


class Screen:
    """Where one command writes. With `as_json`, stdout gets one JSON document and nothing else."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.out = _console(sys.stdout)
        self.err = _console(sys.stderr)

    def note(self, what: str, value: str, source: str) -> None:
        """Show one thing that was inferred, and what it was inferred from."""
        if not self.quiet:
            line = Text(f"{what + ': ':<15}", "bold")
            line.append(printable(value, 1000), "cyan").append(f"  ({printable(source, 1000)})")
            self.err.print(line, soft_wrap=True)

    def warn(self, message: str) -> None:
        line = Text("warning: ", "bold yellow").append(printable(message, 2000))
        self.err.print(line, soft_wrap=True)

    def echo(self, command: str) -> None:
        """Show a command that is about to run, as the user could type it."""
        if not self.quiet:
            self.err.print()
            self.err.print(Text("$ ", "bold green").append(printable(command, 2000), "bold"))

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *captions: str
    ) -> None:
        """Print a table and its captions: the first column left-aligned, others right-aligned."""
        if self.as_json:
            return
        terminal = self.out.is_terminal
        table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=terminal)
        for place, column in enumerate(columns):
            table.add_column(Text(column), justify="right" if place else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        # Title and captions are printed outside the table, because rich wraps them at its width.
        self.out.print(Text(printable(title), "bold"), soft_wrap=True)
        self.out.print(table)
        for line in captions:
            self.out.print(Text(printable(line), "dim"), soft_wrap=True)
        if captions or not terminal:
            self.out.print()

    def line(self, text: str) -> None:
        """Print one line of the result."""
        if not self.as_json:
            self.out.print(Text(printable(text, 2000)), soft_wrap=True)

    def document(self, content: Mapping[str, Any]) -> None:
        """Print the JSON document of `--json`; JSON has no NaN, so NaN becomes null."""
        if not self.as_json:
            return
        try:
            sys.stdout.write(to_json(content))
            sys.stdout.flush()
        except BrokenPipeError:
            silence(sys.stdout)
        except OSError as error:
            _handle_lost(sys.stdout, error)

    @contextmanager
    def progress(self, what: str, total: int | None) -> Iterator[Callable[[int, str], None]]:
        """A progress bar on stderr; the function yielded takes the number done and a remark."""
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
    """Print one line on stderr, whatever the message contains."""
    line = Text("error: ", "bold red").append(printable(message, 2000))
    _console(sys.stderr).print(line, soft_wrap=True)


def silence(stream: TextIO) -> None:
    """Discard everything that is written to a stream from now on, because its reader has gone.

    The work goes on, and the exit code tells how it ended: a user who reads only the first lines
    of `pbu unlearn` still wants the checkpoint.
    """
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)


def _handle_lost(stream: Any, error: OSError) -> None:
    """Handle a stream that takes no more output.

    Raises Stopped where it is a terminal that was closed, unless SIGHUP is ignored as under nohup;
    PbuError for stdout; and nothing for stderr.
    """
    of_terminal = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
    silence(stream)
    hangup = getattr(signal, "SIGHUP", None)
    if of_terminal and hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        raise Stopped(hangup)
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
            _handle_lost(self.file, error)

    def on_broken_pipe(self) -> None:
        silence(self.file)  # type: ignore[arg-type]  # rich's own method exits with 1


def error_document(message: str, exit_code: int) -> dict[str, Any]:
    """The JSON document of a command that failed.

    >>> error_document("no such file", 3)["error"]
    {'message': 'no such file', 'exit_code': 3}
    """
    error = {"message": printable(message, 2000), "exit_code": exit_code}
    return {"schema": SCHEMA, "pbu": __version__, "error": error}


def percent(value: float | None) -> str:
    """A percentage with two decimals, or `unknown` where it is not known.

    >>> percent(99.5), percent(None)
    ('99.50', 'unknown')
    """
    return "unknown" if value is None or math.isnan(value) else f"{value:.2f}"


def _console(stream: Any) -> Console:
    width = None if stream.isatty() else PIPED_WIDTH
    return _Console(file=stream, width=width, markup=False, highlight=False, emoji=False)
