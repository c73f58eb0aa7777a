"""Write run records: check where they go, record a run, add an evaluation."""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pbu_cli.errors import CheckpointError, InvalidUsage, PbuError, printable
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.io.atomic_files import check_output, exclusive_output, write_text
from pbu_cli.io.checkpoint import Checkpoint
from pbu_cli.io.model_folder import fingerprint
from pbu_cli.io.regular_files import read_whole, sha256
from pbu_cli.io.safetensors_format import Fingerprint
from pbu_cli.io.strict_json import to_json
from pbu_cli.models.model_config import PROCESSOR
from pbu_cli.models.sources.timm import PREFIX as TIMM
from pbu_cli.records.places import RecordFiles, check_no_description
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
from pbu_cli.settings import InputOptions

KEY_BYTES = 32
RECORD_PATIENCE = 60.0  # seconds that an evaluation waits for another one that adds to its record


def record_unlearning(
    places: RecordFiles,
    inputs: UnlearningInputs,
    output: tuple[Path, Fingerprint],
    *,
    fisher: Path | None,
    options: InputOptions,
    document: Mapping[str, Any],
) -> None:
    """Write the record of a run, and its key if it is kept.

    output: the path of the output, which is not there yet, and the fingerprint that it will have.
    """
    path, key_path = places.record, places.key
    assert path is not None
    checkpoint, key = inputs.loaded.checkpoint, secrets.token_bytes(KEY_BYTES)
    files = [
        _file_entry("output", output[0], path, output[1]),
        _file_entry("input", checkpoint.path, path, checkpoint.fingerprint),
        *([_file_entry("Fisher file", fisher, path, fingerprint(fisher))] if fisher else []),
        *_files_beside(checkpoint.path, options.arch, path),
    ]
    facts = {
        "run": _run_facts(inputs.loaded.device, document, options.arch),
        "forget_set": _forget_set(
            inputs, key, kept=key_path is not None, rotated=options.exif_rotation
        ),
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


def check_appendable(path: Path, checkpoint: Path, state_dict: str | None = None) -> None:
    """Refuse a record that an evaluation of `checkpoint` cannot be added to, before any work."""
    check_output(path, force=True, sources=(checkpoint,), suffix=".json")
    check_no_description(path, (checkpoint,))
    if path.exists():
        _read_appendable(path, fingerprint(checkpoint, state_dict))


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
    with exclusive_output(path, force=True, wait=RECORD_PATIENCE):
        before = _read_appendable(path, own) if path.exists() else statement(files[:1])
        facts = _run_facts(device, document, arch)
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
    chosen = {} if found.state_dict is None else {"state_dict": found.state_dict}
    return {**entry, "sha256": found.sha256, "tensors": found.tensors, **chosen}


def _files_beside(checkpoint: Path, arch: str | None, record: Path) -> list[dict[str, Any]]:
    """What a network was built from besides tensors: its config.json, the description of its image
    processor, and the file of --arch."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    named = [("config", folder / "config.json"), ("image processor", folder / PROCESSOR)]
    if arch is not None and ":" in arch and not arch.startswith(TIMM):
        place = arch.rpartition(":")[0]
        source = place if place.endswith(".py") else getattr(sys.modules[place], "__file__", None)
        named += [("architecture", Path(source))] if source else []
    return [_file_entry(role, path, record, sha256(path)) for role, path in named if path.is_file()]


def _run_facts(
    device: torch.device, document: Mapping[str, Any], arch: str | None
) -> dict[str, Any]:
    """What a record says of one run: the machine, and the JSON document of its results.

    The warnings are left out, because they may name an image, and so is the folder of an absolute
    `arch`, which is no business of the record's readers.
    """
    shown = {key: value for key, value in document.items() if key not in ("schema", "warnings")}
    if arch is not None and os.path.isabs(arch):  # noqa: PTH117
        name = os.path.basename(arch)  # noqa: PTH119
        shown["inferred"] = [
            {key: text.replace(arch, name) for key, text in entry.items()}
            for entry in document.get("inferred", [])
        ]
    return {
        **shown,
        "versions": versions(),
        "device": describe_device(device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _forget_set(
    inputs: UnlearningInputs, key: bytes, *, kept: bool, rotated: bool
) -> dict[str, Any]:
    """The count and the keyed digest of the forget images.

    kept: whether the key is kept. rotated: whether images were turned as their EXIF data say.
    """
    labels = inputs.image_labels
    return {
        "images": len(labels),
        "by_class": {str(c): int((labels == c).sum()) for c in sorted(set(labels.tolist()))},
        "shape": list(inputs.images.pixels.shape[1:]),
        "hmac_sha256": keyed_digest(key, inputs.images.pixels),
        "key": "kept apart by --record-key" if kept else "discarded",
        **({} if rotated else {"exif_rotation": False}),
        **({} if inputs.resizing is None else {"resizing": inputs.resizing.entry()}),
    }


def _relative_to(record: Path, path: Path) -> str:
    """A path relative to the record's folder: the record and its files can move together."""
    here, there = (os.path.realpath(place.parent) for place in (record, path))
    return str(Path(os.path.relpath(there, here)) / path.name)
