"""Verify a run record: compute every digest in it again and compare."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pbu_cli.errors import CheckpointError, InvalidUsage
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_files import fit_centre
from pbu_cli.images.image_folders import list_groups
from pbu_cli.io.model_folder import fingerprint
from pbu_cli.io.regular_files import sha256
from pbu_cli.models.sources.resizing_entry import from_entry
from pbu_cli.records.statement import (
    MAX_BYTES,
    digest_holds,
    file_entries,
    keyed_digest,
    read_record,
)


@dataclass(frozen=True)
class Finding:
    """One statement of a record, and whether it holds; None where that cannot be known."""

    what: str
    holds: bool | None
    detail: str


def verify(
    path: Path,
    key: bytes | None = None,
    forget: Sequence[str] = (),
    stdin: BinaryIO | None = None,
    *,
    anywhere: bool = False,
) -> list[Finding]:
    """Check a record against itself and against the files that it names.

    A record is a stranger's file. So only files below its own folder are read, after links were
    followed, unless `anywhere` is given.

    The forget set is checked where both `key` and the folders `forget` are given. Raises
    CheckpointError where the file is no run record, ImageError where the images cannot be read,
    InvalidUsage where only one of `key` and `forget` is given.
    """
    record = read_record(path)
    unchanged = digest_holds(record)
    detail = "as it was written" if unchanged else "was changed after pbu wrote it"
    findings = [Finding("record", unchanged, detail)]
    listed = file_entries(record)
    # An evaluation names files again that the run has named. Each file is checked once, under the
    # role that it has first.
    files = {(e["path"], e["sha256"], e.get("tensors")): e for e in reversed(listed)}
    for entry in reversed(files.values()):
        replaced = _is_replaced(entry, listed[0])
        findings += _check_file(entry, path, replaced=replaced, anywhere=anywhere)
    return [
        *findings,
        *_check_forget_set(record["predicate"].get("forget_set"), key, forget, stdin),
    ]


def _is_replaced(entry: Mapping[str, Any], subject: Mapping[str, Any]) -> bool:
    """Whether the run wrote its output over this input."""
    return bool(entry["role"] == "input" and entry["path"] == subject["path"])


def _check_file(
    entry: Mapping[str, Any], record: Path, *, replaced: bool, anywhere: bool
) -> list[Finding]:
    what = f"{entry['role']} {entry['path']}"
    if replaced:
        return [Finding(what, None, "replaced by the output, as --force asked for")]
    path = record.parent / entry["path"]
    if not anywhere and not _is_below(record.parent, path):
        reason = "outside the record's folder and not read: pass --files-anywhere to read it"
        return [Finding(what, False, reason)]
    try:
        if "tensors" not in entry:
            return [_compare(what, "sha256", sha256(path, MAX_BYTES), entry["sha256"])]
        found = fingerprint(path, entry.get("state_dict"))
    except OSError as error:
        return [Finding(what, False, f"cannot be read: {error.strerror}")]
    except (CheckpointError, InvalidUsage) as error:
        return [Finding(what, False, str(error).removeprefix(f"{path}: "))]
    return [
        _compare(what, "sha256", found.sha256, entry["sha256"]),
        _compare(what, "sha256 of the tensors", found.tensors, entry["tensors"]),
    ]


def _is_below(folder: Path, path: Path) -> bool:
    """Whether the file lies in the folder or in one below it, after links were followed."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a NUL byte or a loop of links
        return True  # reading it then says what is wrong


def _compare(what: str, kind: str, found: str, recorded: str) -> Finding:
    if hmac.compare_digest(found, recorded):
        return Finding(what, True, f"{kind} {found[:16]}...")
    # What was found is not shown: it would tell something of a file that only the record names.
    return Finding(what, False, f"{kind} is another one than the recorded {recorded[:16]}...")


def _check_forget_set(
    recorded: Mapping[str, Any] | None,
    key: bytes | None,
    forget: Sequence[str],
    stdin: BinaryIO | None,
) -> list[Finding]:
    what = "forget set"
    if (key is None) != (not forget):
        raise InvalidUsage(
            "--record-key and --forget: got one of them; the forget set is checked with both"
        )
    if recorded is None:
        return [Finding(what, False, "the record has none to check")] if forget else []
    if key is None:
        reason = "its key was discarded" if recorded.get("key") == "discarded" else "needs its key"
        return [Finding(what, None, f"{recorded['images']} images; {reason}, and the images")]
    channels, *size = recorded["shape"]
    images = decode(
        list_groups(forget, stdin),
        channels=channels,
        size=(size[0], size[1]),
        skip_bad=True,
        exif_rotation=recorded.get("exif_rotation", True),
        fit=from_entry(recorded["resizing"]) if "resizing" in recorded else fit_centre,
    ).pixels
    if len(images) != recorded["images"]:
        text = f"{len(images)} images, recorded were {recorded['images']}"
        return [Finding(what, False, text)]
    return [_compare(what, "keyed digest", keyed_digest(key, images), recorded["hmac_sha256"])]
