"""Pickles that cost more than they are, name what they may not, or claim what they have not."""

from __future__ import annotations

import io
import pickle
import pickletools
import time
from collections import OrderedDict
from typing import Any

import pytest
import torch

from pbu_cli.io.pickle_globals import HostileName, Opaque, TensorRecord
from pbu_cli.io.pickle_machine import MAX_OPCODES, Machine


def read(data: bytes) -> Any:
    return Machine(memoryview(data)).read()


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    "value",
    [
        {
            "a": 1,
            "b": [2, -3, 70_000, 2**70],
            "c": (None, True, False, 1.5),
            "d": b"x",
            3: "\ud800",
        },
        OrderedDict([("x", ()), ("y", {"z": []})]),
        ["é" * 300, (1, 2, 3, 4), "same", "same"],
    ],
)
def test_plain_values_are_those_of_pickle(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    found = read(data)
    if b"_codecs" in data:  # bytes of protocol 2 are a call
        assert isinstance(found.pop("d"), Opaque)
        value = {key: item for key, item in value.items() if key != "d"}
    assert found == value


def test_every_opcode_that_torch_writes_is_known() -> None:
    file = io.BytesIO()
    torch.save({"a": torch.nn.Linear(2, 2).state_dict(), "p": torch.nn.Parameter(torch.ones(1)),
                "b": torch.ones(2, dtype=torch.uint16), "n": [1.5, None]},
               file, _use_new_zipfile_serialization=False)  # fmt: skip
    data = memoryview(file.getvalue())
    machine = Machine(data)
    content = [machine.read() for _ in range(5)][3]
    assert isinstance(content["a"]["weight"], TensorRecord)
    assert content["a"]["weight"].size == (2, 2)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"cos\nsystem\n.", "os.system"),
        (b"c__builtin__\neval\n.", "__builtin__.eval"),
        (b"\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"cposix\nsystem\nX\x02\x00\x00\x00id\x85R.", "posix.system"),
        (b"\x8c\x05torch\x8c\x09os.system\x93.", "torch.os.system"),
        (b"c__builtin__\ngetattr\nctorch\nhub\nX\x02\x00\x00\x00os\x86R.", "torch.hub.os"),
        (b"c__builtin__\ngetattr\nca\nB\nX\x0b\x00\x00\x00__globals__\x86R.", "a.B.__globals__"),
        (b"ca\nB\n)R)R.", "a call of a.B"),
    ],
)
def test_a_name_by_which_a_file_runs_code_is_named(data: bytes, says: str) -> None:
    with pytest.raises(HostileName, match=says):
        read(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"}(KK.", "leaves values"),
        (b"}}.", "leaves values"),
        (b"}(K\x01u.", "keys for something"),
        (b"]K\x01K\x02s.", "keys for something|no dictionary"),
        (b"K\x01)R.", "no function"),
        (b"ccollections\nOrderedDict\n(" + b"N" * 17 + b"tR.", "17 arguments"),
        (b"ccollections\nOrderedDict\n(K\x01tR.", "else than pairs"),
        (b"\x8a\xff" + b"\x01" * 255 + b".", "whole number of 255 bytes"),
        (b"ctorch.storage\n_load_from_bytes\n.", r"as pickle\.dump writes"),
        (b"\x8c\x01aX\xc9\x00\x00\x00" + b"b" * 201 + b"\x93.", "more than 200"),
        (b"h\x07.", "reference to nothing"),
        (b"t.", "without its mark"),
        (b"(.", "without its operand"),
        (b".", "without its operand"),
        (b"i", "opcode 0x69"),
        (b"I1\n.", "opcode 0x49"),
        (b"X\xff\xff\xff\xffab.", "ends early"),
        (b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
         b"J\xff\xff\xff\xfftQ.", "a storage that"),
        (b"((K\x01tK\x02tQ.", "a storage that"),
        (b"c" + b"a" * 300 + b"\nb\n.", "name of more than 200"),
        (b"(K\x01t]\x93.", "name that is no text"),
        (b"N}b.", "attributes of a NoneType"),
    ],
)  # fmt: skip
def test_what_torch_would_not_write_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"}((K\x01tK\x02u.", "a tuple as a key"),
        (b"}(]K\x02u.", "a list as a key"),
        (b"}(\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x7fK\x02u.", "a int as a key"),
        (b"}(ca\nB\nK\x02u.", "a Name as a key"),
    ],
)
def test_a_key_whose_hash_cannot_be_trusted_is_never_hashed(data: bytes, what: str) -> None:
    ((key, value),) = read(data).items()
    assert isinstance(key, Opaque)
    assert (key.what, value) == (what, 2)


def nested(depth: int) -> bytes:
    """A tuple of two references to a tuple of two references, and so on."""
    return b"K\x01" + b"".join(
        b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(depth)
    )


@pytest.mark.parametrize(
    "data",
    [
        b"}(" + nested(200) + b"K\x01u.",  # a key whose hash takes 2^200 steps
        b"]" * 900_000 + b"a" * 899_999 + b".",  # nested lists
        b"(" * 900_000 + b"t" * 900_000 + b".",
        b"K\x01" + b"\x85" * 900_000 + b".",
        b"N" * (MAX_OPCODES + 1) + b".",
        b"(" + b"N" * 300_000 + b"tq\x00" + b"ccollections\nOrderedDict\nq\x01"
        + b"h\x01h\x00R0" * 100_000 + b".",
        b"(" + b"(NNt" * 100_000 + b"lq\x00" + b".",
        b"(" + b"N" * 300_000 + b"tq\x00" + b"h\x00Q" * 100_000 + b".",
    ],
    ids=range(8),
)  # fmt: skip
def test_no_pickle_takes_more_time_than_its_length_allows(data: bytes) -> None:
    start = time.perf_counter()
    try:
        read(data)
    except ValueError as error:
        assert str(error).isprintable()  # noqa: PT017
    assert time.perf_counter() - start < 10


def test_a_dictionary_of_a_long_list_counts_as_many_opcodes() -> None:
    pairs = b"(" + b"NN\x86" * 1000 + b"e"
    call = b"ccollections\nOrderedDict\n" + b"]q\x00" + pairs + b"\x85R"
    again = b"ccollections\nOrderedDict\nh\x00\x85R"
    with pytest.raises(ValueError, match="more than 1,000,000 pickle opcodes"):
        read(call + again * 2000 + b".")


def test_the_disassembler_of_python_knows_the_same_opcodes() -> None:
    """Each handler's code is one of Python's opcodes."""
    from pbu_cli.io.pickle_machine import HANDLERS

    codes = {ord(opcode.code) for opcode in pickletools.opcodes}
    assert set(HANDLERS) <= codes
