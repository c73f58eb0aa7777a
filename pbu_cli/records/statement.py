"""The run record: what was run on which files, as an in-toto Statement that others can sign.

A record holds digests, settings and measurements. It never holds an image, the name of an image or
a pixel: the forget set is in it as a count and one keyed digest, which says nothing without its
key. The record's own digest shows accidental changes. It does not show forgery, because a forger
can compute it as well: against forgery, sign the file.

Source of the form: in-toto Attestation Framework, Statement v1.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pbu_cli.errors import CheckpointError, printable
from pbu_cli.io.regular_files import read_whole
from pbu_cli.io.strict_json import from_json, plain

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:pbu-cli:run-record:v1"
VERSION = 1
MAX_BYTES = 16 << 20  # bytes of a record
MAX_FILES = 1000
LIMITATIONS = (
    "This records what was run; it is no proof that anything was deleted or forgotten.",
    "The measurements are of the images given, by the versions and on the device named; they say"
    " nothing of other images.",
    "A low accuracy on the forget images is reached by masking the class as well, which forgets"
    " nothing.",
    "Digests show that files are the same as then; they do not show who made them, nor that no"
    " other copy exists. The record's own digest shows accidents, not forgery: sign the record.",
)


def keyed_digest(key: bytes, pixels: Tensor) -> str:
    """HMAC-SHA256 over the sorted HMACs of the images, uint8 [n, c, h, w].

    The images may come in any order.

    >>> import torch
    >>> images = torch.arange(8, dtype=torch.uint8).reshape(2, 1, 2, 2)
    >>> keyed_digest(b"k", images) == keyed_digest(b"k", images.flip(0))
    True
    """
    shape = repr(tuple(pixels.shape[1:])).encode()
    images = (image.contiguous().numpy().data for image in pixels)
    each = sorted(hmac.digest(key, shape + bytes(image), "sha256") for image in images)
    return hmac.digest(key, b"".join(each), "sha256").hex()


def statement(files: list[dict[str, Any]], **facts: Any) -> dict[str, Any]:
    """A record whose subject is the first of `files`, with its own digest."""
    subject = {"name": files[0]["path"], "digest": {"sha256": files[0]["sha256"]}}
    predicate = {"version": VERSION, "files": files, **facts, "limitations": list(LIMITATIONS)}
    return with_digest(
        {
            "_type": STATEMENT,
            "subject": [subject],
            "predicateType": PREDICATE,
            "predicate": predicate,
        }
    )


def with_evaluation(
    record: Mapping[str, Any], files: list[dict[str, Any]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The record with one evaluation more and a new digest."""
    predicate = record["predicate"]
    more = [*predicate.get("evaluations", []), {"files": files, **facts}]
    return with_digest({**record, "predicate": {**predicate, "evaluations": more}})


def with_digest(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its own digest under the key `seal`.

    The digest is the sha256 of the record's JSON without that key, with sorted keys and no spaces.
    """
    without_digest = {key: value for key, value in record["predicate"].items() if key != "seal"}
    whole = plain({**record, "predicate": without_digest})
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
    seal = hashlib.sha256(text.encode("ascii")).hexdigest()
    return {**whole, "predicate": {**whole["predicate"], "seal": seal}}


def digest_holds(record: Mapping[str, Any]) -> bool:
    """Whether the record is as it was when its digest was computed."""
    return bool(with_digest(record)["predicate"]["seal"] == record["predicate"].get("seal"))


def read_record(path: Path) -> dict[str, Any]:
    """Read a record that anybody may have written.

    Raises CheckpointError where pbu could not have written it. Only what `pbu verify` uses is
    checked: every file entry has a role, a path and a sha256, and there are at most MAX_FILES.
    """
    try:
        record = from_json(read_whole(path, MAX_BYTES))
        _check(record)
        with_digest(record)
    except FileNotFoundError:
        raise CheckpointError(f"{printable(path)}: no such record; expected a file that"
                              " --record wrote") from None  # fmt: skip
    except RecursionError:
        raise CheckpointError(f"{printable(path)}: not a run record (nested too deeply)") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"{printable(path)}: not a run record ({printable(reason)}); expected a file that"
            " --record wrote"
        ) from None
    return record  # type: ignore[no-any-return]


def file_entries(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every file entry of a record, its subject first."""
    predicate = record["predicate"]
    more = [entry for run in predicate.get("evaluations", []) for entry in run["files"]]
    return [*predicate["files"], *more]


def _check(record: Any) -> None:
    """Raise ValueError where the record lacks what `pbu verify` relies on."""

    def expect(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"expected {what}")

    expect(isinstance(record, dict), "an object")
    expect(record.get("_type") == STATEMENT, f"_type {STATEMENT}")
    expect(record.get("predicateType") == PREDICATE, f"predicateType {PREDICATE}")
    predicate = record.get("predicate")
    expect(isinstance(predicate, dict), "a predicate")
    expect(predicate.get("version") == VERSION, f"version {VERSION}")
    runs = predicate.get("evaluations", [])
    expect(isinstance(runs, list) and all(isinstance(run, dict) for run in runs), "evaluations")
    lists = [predicate.get("files"), *(run.get("files") for run in runs)]
    expect(all(isinstance(files, list) for files in lists) and bool(lists[0]), "files")
    found = [entry for files in lists for entry in files]
    expect(len(found) <= MAX_FILES, f"at most {MAX_FILES} files")
    expect(all(_is_entry(entry) for entry in found), "a role, path and sha256 of every file")
    subject = {"name": found[0]["path"], "digest": {"sha256": found[0]["sha256"]}}
    expect(record.get("subject") == [subject], "the first file for its subject")
    forget = predicate.get("forget_set")
    expect(forget is None or _is_forget_set(forget), "count, shape and digest of the forget set")


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(key), str) for key in ("role", "path", "sha256"))
        and _is_digest(entry["sha256"])
        and ("tensors" not in entry or _is_digest(entry["tensors"]))
        and isinstance(entry.get("state_dict", ""), str)
    )


def _is_forget_set(found: Any) -> bool:
    shape = found.get("shape") if isinstance(found, dict) else None
    return (
        isinstance(shape, list)
        and len(shape) == 3
        and all(type(size) is int and 1 <= size <= 4096 for size in shape)
        and type(found.get("images")) is int
        and isinstance(found.get("exif_rotation", True), bool)
        and _is_digest(found.get("hmac_sha256"))
    )


def _is_digest(text: Any) -> bool:
    return isinstance(text, str) and re.fullmatch(r"[0-9a-f]{64}", text) is not None
