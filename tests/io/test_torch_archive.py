"""Archives that say one thing twice and differently are refused, and torch's own are read."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

import pytest
import torch

from pbu_cli.io.torch_archive import entries_of


def saved() -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.arange(40.0), "b": torch.ones(3, dtype=torch.float16)}, file)
    return file.getvalue()


def stored(names: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_the_entries_are_those_that_zipfile_finds() -> None:
    for data in (saved(), stored({"x/data.pkl": b"N.", "x/version": b"3\n", "x/data/0": b""})):
        found = entries_of(memoryview(data))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            expected = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
        assert {name: data[slice(*span)] for name, span in found.items()} == expected


def patched(data: bytes, at: int, content: bytes) -> bytes:
    return data[:at] + content + data[at + len(content) :]


def central(data: bytes) -> int:
    return data.index(b"PK\x01\x02")


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "bytes before": lambda d: b"x" + d,
    "bytes behind": lambda d: d + b"x",
    "a comment": lambda d: patched(d, len(d) - 2, b"\x01\x00") + b"x",
    "two archives": lambda d: d + d,
    "another count": lambda d: patched(d, len(d) - 12, b"\x01\x00"),
    "another place of the directory": lambda d: patched(d, len(d) - 6, struct.pack("<L", 7)),
    "another 64-bit place": lambda d: patched(d, len(d) - 98 + 48, struct.pack("<Q", 7)),
    "a moved locator": lambda d: patched(d, len(d) - 42 + 8, struct.pack("<Q", 7)),
    "compressed": lambda d: patched(d, central(d) + 10, b"\x08\x00"),
    "another size": lambda d: patched(d, central(d) + 24, struct.pack("<L", 9)),
    "two sizes": lambda d: patched(d, central(d) + 20, struct.pack("<2L", 9, 9)),
    "another offset": lambda d: patched(d, central(d) + 42, struct.pack("<L", 1)),
    "another name": lambda d: patched(d, central(d) + 46, b"X"),
    "another local name": lambda d: patched(d, 30, b"X"),
    "a local size": lambda d: patched(d, 18, struct.pack("<2L", 9, 9)),
    "another checksum": lambda d: patched(d, central(d) + 16, struct.pack("<L", 9)),
    "encrypted": lambda d: patched(d, central(d) + 8, b"\x09\x08"),
    "short": lambda d: d[:-1],
    "empty": lambda d: b"",
    "only an end": lambda d: d[-22:],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_archive_that_two_readers_would_read_differently_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"archive|entry|unpack|decode"):
        entries_of(memoryview(HOSTILE[kind](saved())))


def test_a_damaged_byte_of_a_tensor_is_noticed() -> None:
    data = bytearray(saved())
    data[entries_of(memoryview(data))["data/0"][0] + 5] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        entries_of(memoryview(data))


@pytest.mark.parametrize("names", [{"x/a": b"1", "y/b": b"2"}, {"x/a": b"1", "b": b"2"}])
def test_entries_of_two_folders_are_refused(names: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="two top folders"):
        entries_of(memoryview(stored(names)))
