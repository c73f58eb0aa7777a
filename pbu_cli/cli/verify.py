"""`pbu verify`: compute the digests of a run record again and say which of them hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pbu_cli.cli.flags.shared import IMAGES, Json, Quiet, Verbose
from pbu_cli.cli.session import finish, open_session


def verify(
    record: Annotated[
        Path, typer.Argument(metavar="RECORD", readable=False, help="A file that --record wrote.")
    ],
    record_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The key that unlearn --record-key wrote.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    forget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="The forget images, to check their digest with the key.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    files_anywhere: Annotated[
        bool,
        typer.Option(
            "--files-anywhere",
            help="Also read files that the record names outside its own folder.",
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compute every digest of a run record again and say what holds; 5 where something does not."""
    from pbu_cli.records.verifier import verify as check
    from pbu_cli.records.writer import read_key

    screen, session = open_session(as_json, quiet, verbose)
    findings = check(
        record,
        None if record_key is None else read_key(record_key),
        forget or (),
        session.stdin,
        anywhere=files_anywhere,
    )
    words = {True: "yes", False: "NO", None: "unknown"}
    screen.table(
        f"What holds of {record}",
        ("", "holds"),
        [(f"{f.what}: {f.detail}", words[f.holds]) for f in findings],
        "A record shows what was run; it is no proof of deletion, and unsigned no proof of origin.",
    )
    failed = [f"{f.what}: {f.detail}" for f in findings if f.holds is False]
    finish(
        screen,
        {**session.heading("verify"), "findings": [vars(f) for f in findings], "holds": not failed},
        f"{record}: {len(failed)} of {len(findings)} do not hold: {'; '.join(failed)}"
        if failed
        else "",
    )
