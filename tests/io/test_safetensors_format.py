"""Safetensors files: the same tensors give the same bytes, and are read back as they were."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from pbu_cli.errors import PbuError
from pbu_cli.io import checkpoint
from pbu_cli.io.safetensors_format import DTYPES, digest, parse_safetensors, write
from tests.attack.cases import safetensors_files

TENSORS = {"conv1.weight": torch.randn(4, 3), "bn.num_batches_tracked": torch.tensor(7)}
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_float_dtype_is_read_back_unchanged(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.randn(5, 3).to(dtype), "b": torch.tensor(3)}
    write(tmp_path / "a.safetensors", tensors, {"format": "pt", "author": "x"})
    read = checkpoint.read(tmp_path / "a.safetensors")
    assert read.tensors["a"].dtype == dtype
    assert digest(read.tensors) == digest(tensors)
    assert read.metadata == {"format": "pt", "author": "x"}


def test_the_same_tensors_and_metadata_give_the_same_bytes(tmp_path: Path) -> None:
    """The safetensors library writes metadata in a random order."""
    metadata = {str(key): str(key) for key in range(12)} | {"é\n\x01": '"\\'}
    digests = set()
    for number in range(6):
        path = tmp_path / f"{number}.safetensors"
        write(path, TENSORS, metadata)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
        with safe_open(path, "pt") as file:
            assert file.metadata() == metadata
    assert len(digests) == 1


def test_the_digest_depends_on_names_dtypes_shapes_and_bytes_but_not_on_the_order() -> None:
    a, b = torch.zeros(2, 3), torch.ones(4)
    base = digest({"a": a, "b": b})
    assert base == digest({"b": b, "a": a})
    others = [
        {"a": a, "c": b},
        {"a": a.reshape(3, 2), "b": b},
        {"a": a.int(), "b": b},
        {"a": a, "b": -b},
        {"a": a},
    ]
    assert len({base, *map(digest, others)}) == len(others) + 1


def test_tied_weights_are_written_under_each_name(tmp_path: Path) -> None:
    tied = torch.randn(3)
    write(tmp_path / "a.safetensors", {"x": tied, "y": tied}, {})
    read = checkpoint.read(tmp_path / "a.safetensors").tensors
    assert torch.equal(read["x"], tied)
    assert torch.equal(read["y"], tied)


def test_a_metadata_key_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    """The safetensors library would take the last value."""
    path = tmp_path / "a.safetensors"
    write(path, {"x": torch.zeros(2)}, {"key1": "1", "key2": "2"})
    content = bytearray(path.read_bytes())
    assert parse_safetensors(content)[1] == {"key1": "1", "key2": "2"}
    with pytest.raises(ValueError, match="key1 occurs twice"):
        parse_safetensors(content.replace(b"key2", b"key1"))


@pytest.mark.parametrize("failure", [PbuError("no"), KeyboardInterrupt("no"), SystemExit("no")])
def test_a_write_that_is_not_verified_changes_nothing(
    tmp_path: Path, failure: BaseException
) -> None:
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"old")

    def refuse(written: dict[str, torch.Tensor]) -> None:
        assert written.keys() == TENSORS.keys()
        raise failure

    with pytest.raises(type(failure), match="no"):
        write(output, TENSORS, {}, refuse)
    assert output.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]


@pytest.mark.parametrize(("number", "says"), [(errno.EIO, "written, but"), (errno.EINVAL, None)])
def test_the_file_is_there_even_if_its_folder_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str | None
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    output = tmp_path / "out.safetensors"
    if says is None:
        write(output, TENSORS, {})
    else:
        with pytest.raises(PbuError, match=says):
            write(output, TENSORS, {})
    assert checkpoint.read(output).tensors.keys() == TENSORS.keys()


HEADERS = safetensors_files()


@settings(deadline=None, max_examples=400)
@given(content=HEADERS)
def test_a_header_that_the_library_refuses_is_refused(content: bytes) -> None:
    """This parser is stricter: it refuses repeated keys, unknown fields and dtypes."""
    try:
        found, metadata = parse_safetensors(bytearray(content))
    except ValueError as error:
        assert str(error)  # noqa: PT017
        return
    expected = safetensors.torch.load(content)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert all(isinstance(value, str) for value in metadata.values())


# safetensors 0.5, the lowest version, writes no uint16, uint32 and uint64.
KNOWN_DTYPES = [dtype for dtype in DTYPES if dtype in safetensors.torch._SIZE]


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_what_the_library_writes_is_read_alike(data: st.DataObject) -> None:
    tensors = {}
    for number in range(data.draw(st.integers(1, 5))):
        shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
        dtype = data.draw(st.sampled_from(KNOWN_DTYPES))
        tensors[f"t{number}"] = torch.randint(0, 2, shape).to(dtype)
    metadata = data.draw(st.dictionaries(st.text(), st.text(), max_size=3))
    content = safetensors.torch.save(tensors, metadata)
    found, said = parse_safetensors(bytearray(content))
    assert said == metadata
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].tolist() == tensor.tolist()


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"shape": [1] * 65, "dtype": "F32", "data_offsets": [0, 4]}, "no dtype, shape"),
        ({"shape": [1], "dtype": "F4", "data_offsets": [0, 4]}, "has the dtype F4"),
        ({"shape": [True], "dtype": "F32", "data_offsets": [0, 4]}, "false shape"),
        ({"shape": [-1], "dtype": "F32", "data_offsets": [0, 4]}, "false shape"),
        ({"shape": [2], "dtype": "F32", "data_offsets": [0, 4]}, "another size than its shape"),
        ({"shape": [1], "dtype": "F32", "data_offsets": [4, 8]}, "leave bytes between"),
        ({"shape": [1], "dtype": "F32", "data_offsets": [0, 4, 4]}, "no dtype, shape"),
        ({"shape": [1], "dtype": "F32", "data_offsets": [0, 4], "x": 1}, "no dtype, shape"),
        (3, "no dtype, shape"),
    ],
)
def test_a_false_entry_is_named(entry: Any, says: str) -> None:
    header = json.dumps({"w": entry}).encode()
    content = bytearray(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match=says):
        parse_safetensors(content)


def test_tensors_at_odd_places_are_copied_and_right() -> None:
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    for spaces in range(8):
        padded = header + b" " * spaces
        content = bytearray(
            len(padded).to_bytes(8, "little") + padded + torch.ones(2).numpy().tobytes()
        )
        assert parse_safetensors(content)[0]["w"].tolist() == [1, 1]


def test_one_number_may_have_any_stride(tmp_path: Path) -> None:
    odd = torch.arange(6.0).as_strided((1,), (3,))
    assert digest({"x": odd}) == digest({"x": torch.zeros(1)})
    write(tmp_path / "a.safetensors", {"x": odd}, {})


def test_more_tensors_than_any_classifier_has_are_refused() -> None:
    header = json.dumps(
        {str(k): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for k in range(50_001)}
    ).encode()
    with pytest.raises(ValueError, match="50,001 tensors"):
        parse_safetensors(bytearray(len(header).to_bytes(8, "little") + header))
