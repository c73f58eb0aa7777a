"""Where a record and its key may be written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pbu_cli.errors import InvalidUsage, printable
from pbu_cli.io.atomic_files import check_output


@dataclass(frozen=True)
class RecordFiles:
    """Where the record of a run goes, and the key of its forget set's digest if it is kept."""

    record: Path | None = None
    key: Path | None = None


def check_places(files: RecordFiles, output: Path, *, force: bool, taken: tuple[Path, ...]) -> None:
    """Refuse places for a record and its key that cannot or must not be written.

    A key is never replaced, not even with `force`: the records made with the old key could not be
    checked any more. taken: the run's other files, which may not be written over.
    """
    record, key = files.record, files.key
    named = {"--output": output, "--record": record, "--record-key": key}
    for flag, place in named.items():
        for other, taken_by in named.items():
            if place is not None and taken_by is not None and _is_lock_of(place, taken_by):
                raise InvalidUsage(
                    f"{printable(place)}: {flag} is the name of the lock of {other}; name another"
                )
    if record is None:
        if key is not None:
            raise InvalidUsage("--record-key: the key of a record; expected --record too")
        return
    check_output(record, force=force, sources=taken, suffix=".json")
    check_no_description(record, taken)
    if key is not None:
        if key.exists():
            raise InvalidUsage(
                f"{printable(key)}: a file is there, and a key is never replaced; name another, or"
                " remove it if its run was interrupted before the record was written"
            )
        check_output(key, force=False, sources=taken)
        for path, name in ((record, "--record"), (output, "--output")):
            if os.path.realpath(key) == os.path.realpath(path):
                raise InvalidUsage(f"{printable(key)}: --record-key equal to {name}; name another")


def check_no_description(record: Path, checkpoints: Iterable[Path]) -> None:
    """Refuse a record in place of the config.json that describes one of the checkpoints."""
    for checkpoint in checkpoints:
        folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
        config = folder / "config.json"
        if os.path.realpath(record) == os.path.realpath(config):
            raise InvalidUsage(
                f"{printable(record)}: --record is the config.json of {printable(checkpoint)}; name"
                " another file"
            )


def _is_lock_of(place: Path, path: Path) -> bool:
    """Whether a place is the name of the lock or of a temporary file of a path."""
    if place.parent.resolve() != path.parent.resolve():
        return False
    pattern = rf"\.{re.escape(path.name)}\.(lock|[0-9a-f]{{8}}\.tmp)"
    return re.fullmatch(pattern, place.name) is not None
