"""The typer application: all commands and `--version`.

The commands import torch inside their bodies, so that `--help` and usage errors answer at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from pbu_cli import __version__
from pbu_cli.cli.benchmark import benchmark
from pbu_cli.cli.demo import demo
from pbu_cli.cli.evaluate import evaluate
from pbu_cli.cli.fisher import fisher
from pbu_cli.cli.unlearn import unlearn
from pbu_cli.cli.verify import verify

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(options: bool) -> None:
    if options:
        typer.echo(f"pbu {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Make a trained classifier forget a class, from its checkpoint and the images of that class
    alone. Exit codes: 0 done, 1 failed, 2 usage, 3 checkpoint, 4 images, 5 criterion not met."""


for command in (fisher, unlearn, evaluate, verify, demo, benchmark):
    app.command()(command)
