"""Writing run records: what a run says of itself, and where that may stand."""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Mapping
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
    LARGEST,
    LIMITATIONS,
    MOST_FILES,
    digest_holds,
    entries,
    keyed_digest,
    read_record,
    statement,
    with_evaluation,
)
from pbu_cli.runtime.device import describe_device, versions

KEY_BYTES = 32


def check_places(
    record: Path | None, key: Path | None, output: Path, *, force: bool, taken: tuple[Path, ...]
) -> None:
    """Refuse places for a record and its key that cannot or must not be written. A key is never
    replaced: the records made with it could not be checked any more."""
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
    path: Path,
    key_path: Path | None,
    prepared: UnlearningInputs,
    output: Path,
    *,
    fisher: Path | None,
    arch: str | None,
    document: Mapping[str, Any],
) -> None:
    """Write the record of a run that has just written `output`, and its key if it is kept."""
    checkpoint, key = prepared.loaded.checkpoint, secrets.token_bytes(KEY_BYTES)
    files = [
        _file_entry("output", output, path, fingerprint(output)),
        _file_entry("input", checkpoint.path, path, checkpoint.fingerprint),
        *([_file_entry("Fisher file", fisher, path, fingerprint(fisher))] if fisher else []),
        *_files_beside(checkpoint.path, arch, path),
    ]
    facts = {
        "run": _run_facts(prepared.loaded.device, document),
        "forget_set": _forget_set(prepared, key, kept=key_path is not None),
    }
    if key_path is not None:
        with exclusive_output(key_path, force=False):
            write_text(key_path, key.hex() + "\n", private=True)
    try:
        with exclusive_output(path, force=True):
            write_text(path, to_json(statement(files, **facts)))
    except PbuError:
        if key_path is not None:
            key_path.unlink(missing_ok=True)  # of no record
        raise


def summary(prepared: UnlearningInputs, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The record in short, for the output's own metadata: the same for the same run."""
    found = versions()
    return {
        "versions": {name: found[name] for name in ("pbu", "torch")},
        "device": prepared.loaded.device.type,
        "input": prepared.loaded.checkpoint.fingerprint.tensors,
        "images": len(prepared.image_labels),
        "settings": settings,
        "limitation": LIMITATIONS[0],
    }


def check_appendable(path: Path, checkpoint: Path) -> None:
    """Refuse a record that an evaluation of `checkpoint` cannot be added to, before any work."""
    check_output(path, force=True, sources=(checkpoint,), suffix=".json")
    if path.exists():
        _appendable(path, fingerprint(checkpoint))


def record_evaluation(
    path: Path,
    checkpoints: Mapping[str, Checkpoint],
    *,
    device: torch.device,
    arch: str | None,
    document: Mapping[str, Any],
) -> None:
    """Add an evaluation to a record; begin one where there is none.

    `checkpoints`: what was evaluated, under `checkpoint`, and what it was compared with, as they
    were read then: the files may have changed since.
    Raises CheckpointError where the record was changed or is of another file.
    """
    files = [_file_entry(role, c.path, path, c.fingerprint) for role, c in checkpoints.items()]
    beside = [
        entry
        for role, c in checkpoints.items()
        for entry in _files_beside(c.path, arch if role == "checkpoint" else None, path)
    ]
    own = checkpoints["checkpoint"].fingerprint
    with exclusive_output(path, force=True):
        before = _appendable(path, own) if path.exists() else statement(files[:1])
        facts = _run_facts(device, document)
        record = with_evaluation(before, [*files, *beside], facts)
        text = to_json(record)
        if len(text) > LARGEST or len(entries(record)) > MOST_FILES:
            raise PbuError(
                f"{printable(path)}: full; it is as it was, without this evaluation: name another"
                " --record"
            )
        write_text(path, text)


def read_key(path: Path) -> bytes:
    """Raises InvalidUsage where the file is no key of pbu's."""
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


def _appendable(path: Path, of: Fingerprint) -> dict[str, Any]:
    record = read_record(path)
    if not digest_holds(record):
        raise CheckpointError(
            f"{printable(path)}: was changed after pbu wrote it; expected it as it was: restore it,"
            " or name another --record"
        )
    if record["predicate"]["files"][0]["sha256"] != of.sha256:
        raise CheckpointError(
            f"{printable(path)}: is the record of another file; expected that of the checkpoint:"
            " name another --record"
        )
    return record


def _file_entry(role: str, path: Path, record: Path, print_of: Fingerprint | str) -> dict[str, Any]:
    """One file of a run: its path seen from the record's folder, sha256, and its tensors' digest.

    `print_of`: a fingerprint of tensors, or the sha256 of a file without any.
    """
    entry: dict[str, Any] = {"role": role, "path": _seen_from(record, path)}
    if isinstance(print_of, str):
        return {**entry, "sha256": print_of}
    return {**entry, "sha256": print_of.sha256, "tensors": print_of.tensors}


def _files_beside(checkpoint: Path, arch: str | None, record: Path) -> list[dict[str, Any]]:
    """What besides tensors a network was built from: its config.json, the file of --arch."""
    named = [("config", checkpoint.parent / "config.json")]
    if arch is not None and ":" in arch:
        place = arch.rpartition(":")[0]
        source = place if place.endswith(".py") else getattr(sys.modules[place], "__file__", None)
        named += [("architecture", Path(source))] if source else []
    return [_file_entry(role, path, record, sha256(path)) for role, path in named if path.is_file()]


def _run_facts(device: torch.device, document: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of one run: the machine, and the JSON document of its results, without
    the warnings, which may name an image."""
    shown = {key: value for key, value in document.items() if key not in ("schema", "warnings")}
    return {
        **shown,
        "versions": versions(),
        "device": describe_device(device),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _forget_set(prepared: UnlearningInputs, key: bytes, *, kept: bool) -> dict[str, Any]:
    """Count and keyed digest of the forget images; `kept` says whether the key is."""
    labels = prepared.image_labels
    return {
        "images": len(labels),
        "by_class": {str(c): int((labels == c).sum()) for c in sorted(set(labels.tolist()))},
        "shape": list(prepared.images.pixels.shape[1:]),
        "hmac_sha256": keyed_digest(key, prepared.images.pixels),
        "key": "kept apart by --record-key" if kept else "discarded",
    }


def _seen_from(record: Path, path: Path) -> str:
    """A path relative to the record's folder, so that both can move together."""
    here, there = (os.path.realpath(place.parent) for place in (record, path))
    return str(Path(os.path.relpath(there, here)) / path.name)
