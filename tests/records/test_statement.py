"""The record as a statement: its digests, and records that strangers wrote."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.errors import CheckpointError
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import list_groups
from pbu_cli.records import statement as record
from tests.conftest import Ran
from tests.records.conftest import content


def _nested(good: dict[str, Any], depth: int) -> bytes:
    lists = b'"x": ' + b"[" * depth + b"]" * depth + b', "files"'
    return json.dumps(good).encode().replace(b'"files"', lists)


def hostile() -> dict[str, bytes]:
    """Records as strangers may write them."""
    entry = {"role": "output", "path": "out.safetensors", "sha256": "0" * 64}
    good = record.statement([entry])

    def of(**change: Any) -> bytes:
        return json.dumps({**good, "predicate": {**good["predicate"], **change}}).encode()

    deep = b"[" * 100_000
    return {
        "empty": b"",
        "not JSON": b"\x00\xff",
        "not UTF-8": b'{"a": "\xff"}',
        "a list": b"[]",
        "deep": deep,
        "deep inside": _nested(good, 100_000),
        "a key twice": json.dumps(good).encode().replace(b'"predicate":', b'"predicate": 1, '
                                                         b'"predicate":', 1),
        "another type": json.dumps({**good, "_type": "x"}).encode(),
        "another predicate": json.dumps({**good, "predicateType": 3}).encode(),
        "no predicate": json.dumps({**good, "predicate": []}).encode(),
        "files of none": of(files=[]),
        "files no list": of(files="abc"),
        "files no objects": of(files=[1]),
        "a digest too short": of(files=[{**entry, "sha256": "0"}]),
        "a path that is a number": of(files=[{**entry, "path": 3}]),
        "too many files": of(files=[entry] * 2000),
        "evaluations no list": of(evaluations={"files": []}),
        "evaluations of nothing": of(evaluations=[1]),
        "a forget set of no shape": of(forget_set={"images": 1, "hmac_sha256": "0" * 64}),
        "a huge forget set": of(
            forget_set={"images": 1, "hmac_sha256": "0" * 64, "shape": [3, 10**9, 10**9]}
        ),
        "an endless number": b'{"a": ' + b"1" * 100_000 + b"}",
    }  # fmt: skip


def test_the_digest_of_the_forget_set_needs_its_key_and_no_order(
    recorded: Path, digits: DemoFiles
) -> None:
    """Against an HMAC written down here by hand."""
    found = content(recorded)["predicate"]["forget_set"]
    key = bytes.fromhex((recorded / "key").read_text())
    pixels = decode(list_groups([str(digits.train / "8")]), channels=1).pixels
    each = sorted(
        hmac.new(key, b"(1, 8, 8)" + image.numpy().tobytes(), hashlib.sha256).digest()
        for image in pixels.flip(0)
    )
    expected = hmac.new(key, b"".join(each), hashlib.sha256).hexdigest()
    assert found["hmac_sha256"] == expected
    assert (found["images"], found["by_class"]) == (len(pixels), {"8": len(pixels)})
    assert (recorded / "key").stat().st_mode & 0o777 == 0o600
    assert key.hex() not in (recorded / "run.json").read_text()


def test_a_record_nested_as_deeply_as_some_pythons_read_is_one_line_and_a_code(
    pbu: Callable[..., Ran], tmp_path: Path
) -> None:
    """Python 3.11 refuses it, 3.12 reads it and finds it changed."""
    entry = {"role": "output", "path": "out.safetensors", "sha256": "0" * 64}
    (tmp_path / "run.json").write_bytes(_nested(record.statement([entry]), 900))
    done = pbu("verify", tmp_path / "run.json")
    assert done.code in (3, 5)
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("name", hostile())
def test_a_hostile_record_is_one_line_and_a_code(
    pbu: Callable[..., Ran], tmp_path: Path, name: Any
) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(hostile()[name])
    done = pbu("verify", path)
    assert done.code == 3
    assert len(done.err.splitlines()) == 1
    assert "not a run record" in done.err
    with pytest.raises(CheckpointError):
        record.read_record(path)
