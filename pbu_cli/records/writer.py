"""Write run records: check where they go, record a run, add an evaluation."""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from pbu_cli.errors import CheckpointError, InvalidUsage, PbuError, printable
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.io.atomic_files import check_output, exclusive_output, write_text
from pbu_cli.io.checkpoint import Checkpoint, Fingerprint, fingerprint
from pbu_cli.io.regular_files import read_whole, sha256
from pbu_cli.io.strict_json import to_json
from pbu_cli.records.statement import (
    LIMITATIONS,
    MAX_BYTES,
    MAX_FILES,
    digest_holds,
    file_entries,
    keyed_digest,
    read_record,
    statement,
    with_evaluation,
)
from pbu_cli.runtime.device import describe_device, versions

KEY_BYTES = 32


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
    if record is None:
        if key is not None:
            raise InvalidUsage("--record-key: the key of a record; expected --record too")
        return
    check_output(record, force=force, sources=taken, suffix=".json")
    if key is not None:
        check_output(key, force=False, sources=taken)
        for other, name in ((record, "--record"), (output, "--output")):
            if os.path.realpath(key) == os.path.realpath(other):
                raise InvalidUsage(f"{printable(key)}: --record-key equal to {name}; name another")


def record_unlearning(
    places: RecordFiles,
    inputs: UnlearningInputs,
    output: Path,
    *,
    fisher: Path | None,
    arch: str | None,
    document: Mapping[str, Any],
) -> None:
    """Write the record of a run that has just written `output`, and its key if it is kept."""
    path, key_path = places.record, places.key
    assert path is not None
    checkpoint, key = inputs.loaded.checkpoint, secrets.token_bytes(KEY_BYTES)
    files = [
        _file_entry("output", output, path, fingerprint(output)),
        _file_entry("input", checkpoint.path, path, checkpoint.fingerprint),
        *([_file_entry("Fisher file", fisher, path, fingerprint(fisher))] if fisher else []),
        *_files_beside(checkpoint.path, arch, path),
    ]
    facts = {
        "run": _run_facts(inputs.loaded.device, document),
        "forget_set": _forget_set(inputs, key, kept=key_path is not None),
    }
    if key_path is not None:
        with exclusive_output(key_path, force=False):
            write_text(key_path, key.hex() + "\n", private=True)
    try:
        with exclusive_output(path, force=True):
            write_text(path, to_json(statement(files, **facts)))
    except PbuError:
        if key_path is not None:
            key_path.unlink(missing_ok=True)  # a key without its record is of no use
        raise


def summary(inputs: UnlearningInputs, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The short record in the output's own metadata: the same for the same run."""
    found = versions()
    return {
        "versions": {name: found[name] for name in ("pbu", "torch")},
        "device": inputs.loaded.device.type,
        "input": inputs.loaded.checkpoint.fingerprint.tensors,
        "images": len(inputs.image_labels),
        "settings": settings,
        "limitation": LIMITATIONS[0],
    }


def check_appendable(path: Path, checkpoint: Path) -> None:
    """Refuse a record that an evaluation of `checkpoint` cannot be added to, before any work."""
    check_output(path, force=True, sources=(checkpoint,), suffix=".json")
    if path.exists():
        _read_appendable(path, fingerprint(checkpoint))


def record_evaluation(
    path: Path,
    checkpoints: Mapping[str, Checkpoint],
    *,
    device: torch.device,
    arch: str | None,
    document: Mapping[str, Any],
) -> None:
    """Add an evaluation to a record; begin a record where there is none.

    checkpoints: by role, what was evaluated (`checkpoint`) and what it was compared with, as they
    were read then: the files on disk may have changed since.
    Raises CheckpointError where the record was changed or belongs to another file.
    """
    files = [_file_entry(role, c.path, path, c.fingerprint) for role, c in checkpoints.items()]
    beside = [
        entry
        for role, c in checkpoints.items()
        for entry in _files_beside(c.path, arch if role == "checkpoint" else None, path)
    ]
    own = checkpoints["checkpoint"].fingerprint
    with exclusive_output(path, force=True):
        before = _read_appendable(path, own) if path.exists() else statement(files[:1])
        facts = _run_facts(device, document)
        record = with_evaluation(before, [*files, *beside], facts)
        text = to_json(record)
        if len(text) > MAX_BYTES or len(file_entries(record)) > MAX_FILES:
            raise PbuError(
                f"{printable(path)}: full; it is as it was, without this evaluation: name another"
                " --record"
            )
        write_text(path, text)


def read_key(path: Path) -> bytes:
    """The key in a file of --record-key. Raises InvalidUsage where the file holds no such key."""
    try:
        text = read_whole(path, 4096).decode("ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise InvalidUsage(f"{printable(path)}: cannot read the key: {reason}") from None
    if not re.fullmatch(rf"[0-9a-f]{{{2 * KEY_BYTES}}}", text):
        raise InvalidUsage(
            f"{printable(path)}: not a key; expected the file that --record-key wrote"
        )
    return bytes.fromhex(text)


def _read_appendable(path: Path, expected: Fingerprint) -> dict[str, Any]:
    """The record at `path`, if it is unchanged and its first file has the expected digest."""
    record = read_record(path)
    if not digest_holds(record):
        raise CheckpointError(
            f"{printable(path)}: was changed after pbu wrote it; expected it as it was: restore it,"
            " or name another --record"
        )
    if record["predicate"]["files"][0]["sha256"] != expected.sha256:
        raise CheckpointError(
            f"{printable(path)}: is the record of another file; expected that of the checkpoint:"
            " name another --record"
        )
    return record


def _file_entry(role: str, path: Path, record: Path, found: Fingerprint | str) -> dict[str, Any]:
    """One file of a run: its path relative to the record's folder, and its digests.

    found: the fingerprint of a file of tensors, or the sha256 of a file without tensors.
    """
    entry: dict[str, Any] = {"role": role, "path": _relative_to(record, path)}
    if isinstance(found, str):
        return {**entry, "sha256": found}
    return {**entry, "sha256": found.sha256, "tensors": found.tensors}


def _files_beside(checkpoint: Path, arch: str | None, record: Path) -> list[dict[str, Any]]:
    """What a network was built from besides tensors: its config.json, and the file of --arch."""
    named = [("config", checkpoint.parent / "config.json")]
    if arch is not None and ":" in arch:
        place = arch.rpartition(":")[0]
        source = place if place.endswith(".py") else getattr(sys.modules[place], "__file__", None)
        named += [("architecture", Path(source))] if source else []
    return [_file_entry(role, path, record, sha256(path)) for role, path in named if path.is_file()]


def _run_facts(device: torch.device, document: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of one run: the machine, and the JSON document of its results. The
    warnings are left out, because they may name an image."""
    shown = {key: value for key, value in document.items() if key not in ("schema", "warnings")}
    return {
        **shown,
        "versions": versions(),
        "device": describe_device(device),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _forget_set(inputs: UnlearningInputs, key: bytes, *, kept: bool) -> dict[str, Any]:
    """The count and the keyed digest of the forget images. kept: whether the key is kept."""
    labels = inputs.image_labels
    return {
        "images": len(labels),
        "by_class": {str(c): int((labels == c).sum()) for c in sorted(set(labels.tolist()))},
        "shape": list(inputs.images.pixels.shape[1:]),
        "hmac_sha256": keyed_digest(key, inputs.images.pixels),
        "key": "kept apart by --record-key" if kept else "discarded",
    }


def _relative_to(record: Path, path: Path) -> str:
    """A path relative to the record's folder: the record and its files can move together."""
    here, there = (os.path.realpath(place.parent) for place in (record, path))
    return str(Path(os.path.relpath(there, here)) / path.name)
