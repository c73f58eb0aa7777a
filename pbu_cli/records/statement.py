"""The run record: what was run on what, as an in-toto Statement that others can sign.

It holds digests, settings and measurements, never an image, a name of one, or a value of one: the
forget set stands in it as a count and one keyed digest, which says nothing without its key. The
record's own digest shows an accident, not a forger, who can compute it as well: against that, sign
the file. Source of the shape: in-toto Attestation Framework, Statement v1.
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
LARGEST = 16 << 20  # bytes of a record
MOST_FILES = 1000
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
    """HMAC over the sorted HMACs of the images, uint8 [n, c, h, w]: one for any order of them.

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
    """A record of what the first of `files` is, with_digest."""
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
    """The record with one evaluation more, with_digest anew."""
    predicate = record["predicate"]
    more = [*predicate.get("evaluations", []), {"files": files, **facts}]
    return with_digest({**record, "predicate": {**predicate, "evaluations": more}})


def with_digest(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its own digest: sha256 of its JSON, sorted and without spaces, less this."""
    bare = {key: value for key, value in record["predicate"].items() if key != "seal"}
    whole = plain({**record, "predicate": bare})
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
    seal = hashlib.sha256(text.encode("ascii")).hexdigest()
    return {**whole, "predicate": {**whole["predicate"], "seal": seal}}


def digest_holds(record: Mapping[str, Any]) -> bool:
    """Whether the record is as it was when it was with_digest."""
    return bool(with_digest(record)["predicate"]["seal"] == record["predicate"].get("seal"))


def read_record(path: Path) -> dict[str, Any]:
    """A record, whoever wrote it. Raises CheckpointError where it is none that pbu could have.

    Of the content, only what `pbu verify` uses is looked at; every entry of a file has a role, a
    path and a sha256, and there are no more than a thousand.
    """
    try:
        record = from_json(read_whole(path, LARGEST))
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


def entries(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every file that a record names, its subject first."""
    predicate = record["predicate"]
    more = [entry for run in predicate.get("evaluations", []) for entry in run["files"]]
    return [*predicate["files"], *more]


def _check(record: Any) -> None:
    def expect(sound: bool, what: str) -> None:
        if not sound:
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
    expect(len(found) <= MOST_FILES, f"at most {MOST_FILES} files")
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
    )


def _is_forget_set(found: Any) -> bool:
    shape = found.get("shape") if isinstance(found, dict) else None
    return (
        isinstance(shape, list)
        and len(shape) == 3
        and all(type(size) is int and 1 <= size <= 4096 for size in shape)
        and type(found.get("images")) is int
        and _is_digest(found.get("hmac_sha256"))
    )


def _is_digest(text: Any) -> bool:
    return isinstance(text, str) and re.fullmatch(r"[0-9a-f]{64}", text) is not None
