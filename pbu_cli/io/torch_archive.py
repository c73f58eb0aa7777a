"""The entries of a PyTorch archive: a zip file as torch.save writes it, and no other.

Programs disagree on zip files that say two things: where the directory is, where an entry begins,
how long it is. So every field that says something a second time has to say the same, the entries
lie side by side in the order of the file, and nothing is compressed.

Source of the format: APPNOTE.TXT of PKWARE, sections 4.3 and 4.5.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

MAX_ENTRIES = 100_000
END, END_64, LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
STREAMED, UTF8 = 1 << 3, 1 << 11  # flags: sizes stand behind the data; the name is UTF-8
FULL_16, FULL_32 = 0xFFFF, 0xFFFFFFFF  # the field stands in the 64-bit record instead
PIECE = 1 << 24  # bytes between which a signal can end the run


@dataclass(frozen=True)
class Entry:
    """One entry of the directory. offset: of its local header."""

    name: str
    flags: int
    crc: int
    size: int
    offset: int


def entries_of(data: memoryview) -> dict[str, tuple[int, int]]:
    """Start and end of each entry's bytes, by its name without the archive's one top folder.

    Raises ValueError where the archive is not as torch.save writes it, or where the bytes of an
    entry do not have its checksum.
    """
    directory, count, end = _directory(data)
    entries = sorted(_central(data, directory, count, end), key=lambda entry: entry.offset)
    found: dict[str, tuple[int, int]] = {}
    position = 0
    tops = {entry.name.partition("/")[0] for entry in entries}
    for entry in entries:
        if entry.offset != position:
            raise ValueError("the entries of the archive overlap, or leave bytes between them")
        start, position = _span(data, entry, directory)
        name = entry.name.partition("/")[2]
        if name in found or len(tops) != 1:
            raise ValueError("the archive has two entries of one name, or two top folders")
        if entry.crc and _checksum(data[start : start + entry.size]) != entry.crc:
            raise ValueError("the bytes of an entry do not have its checksum")
        found[name] = (start, start + entry.size)
    if position != directory:
        raise ValueError("the entries of the archive overlap, or leave bytes behind them")
    return found


def _directory(data: memoryview) -> tuple[int, int, int]:
    """Where the directory begins, how many entries it has, and where it ends."""
    end = len(data) - 22
    if end < 0 or data[end : end + 4] != END:
        raise ValueError("the archive does not end in its directory")
    *disks, here, count, size, start, comment = struct.unpack("<4H2LH", data[end + 4 : end + 22])
    if any(disks) or here != count or comment:
        raise ValueError("the archive has a comment, or several parts")
    locator = end - 20
    if locator >= 0 and data[locator : locator + 4] == LOCATOR_64:
        end = locator - 56
        if end < 0 or data[end : end + 4] != END_64:
            raise ValueError("the archive's 64-bit directory is not before its locator")
        place = struct.unpack("<LQL", data[locator + 4 : locator + 20])
        length, _, _, disk, other, inside, count_64, size_64, start_64 = struct.unpack(
            "<QHHLLQQQQ", data[end + 4 : end + 56]
        )
        if place != (0, end, 1) or length != 44 or disk or other or inside != count_64:
            raise ValueError("the archive's 64-bit directory has false fields")
        for small, large, full in (
            (count, count_64, FULL_16), (size, size_64, FULL_32), (start, start_64, FULL_32),
        ):  # fmt: skip
            if small not in (large, full):
                raise ValueError("the archive has two directories that differ")
        count, size, start = count_64, size_64, start_64
    if start + size != end or count > MAX_ENTRIES:
        raise ValueError("the archive's directory is not where it says, or too long")
    return start, count, end


def _central(data: memoryview, position: int, count: int, end: int) -> list[Entry]:
    found = []
    for _ in range(count):
        if position + 46 > end or data[position : position + 4] != CENTRAL:
            raise ValueError("the archive's directory ends early")
        (_, _, flags, method, _, _, crc, packed, size, name, extra, comment, disk, _, _, offset) = (
            struct.unpack("<6H3L5H2L", data[position + 4 : position + 46])
        )
        fields = position + 46 + name
        text = _text(data[position + 46 : fields])
        wide = _wide(data[fields : fields + extra], [size, packed, offset])
        size, packed, offset = wide
        position = fields + extra + comment
        if method or packed != size:
            raise ValueError("the archive is compressed, which torch.save never does")
        if flags & ~(STREAMED | UTF8) or comment or disk or position > end:
            raise ValueError("an entry of the archive has fields that torch.save never writes")
        found.append(Entry(text, flags, crc, size, offset))
    if position != end:
        raise ValueError("the archive's directory ends early")
    return found


def _span(data: memoryview, entry: Entry, end: int) -> tuple[int, int]:
    """Where the entry's bytes begin, and where the entry ends with what stands behind them."""
    position = entry.offset
    if position + 30 > end or data[position : position + 4] != LOCAL:
        raise ValueError("an entry of the archive is not where the directory says")
    _, flags, method, _, _, crc, packed, size, name, extra = struct.unpack(
        "<5H3L2H", data[position + 4 : position + 30]
    )
    start = position + 30 + name + extra
    text = _text(data[position + 30 : position + 30 + name])
    size, packed = _wide(data[position + 30 + name : start], [size, packed])
    if (flags, method, text) != (entry.flags, 0, entry.name):
        raise ValueError("an entry of the archive has two names or kinds")
    finish, expected = start + entry.size, (entry.crc, entry.size, entry.size)
    said = [(crc, packed, size)]
    if flags & STREAMED:  # the local header has zeros, or the same again; the sizes stand behind
        said = [] if said == [(0, 0, 0)] else said
        layout = "<4sL2Q" if data[finish : finish + 24] == _tail("<4sL2Q", expected) else "<4s3L"
        if data[finish : finish + struct.calcsize(layout)] != _tail(layout, expected):
            raise ValueError("an entry of the archive has two sizes")
        finish += struct.calcsize(layout)
    if any(fields != expected for fields in said):
        raise ValueError("an entry of the archive has two sizes")
    if finish > end:
        raise ValueError("an entry of the archive reaches into its directory")
    return start, finish


def _wide(extra: memoryview, fields: list[int]) -> list[int]:
    """The sizes and offsets, from the 64-bit field where the short one is full."""
    position = 0
    while any(field == FULL_32 for field in fields) and position + 4 <= len(extra):
        kind, length = struct.unpack("<2H", extra[position : position + 4])
        body = extra[position + 4 : position + 4 + length]
        position += 4 + length
        if kind == 1:
            numbers = iter(struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]))
            fields = [next(numbers, f) if f == FULL_32 else f for f in fields]
            break
    return fields


def _tail(layout: str, expected: tuple[int, int, int]) -> bytes:
    """What stands behind the data of a streamed entry."""
    try:
        return struct.pack(layout, b"PK\x07\x08", *expected)
    except struct.error:  # the entry is too large for the short form
        return b"-"


def _text(raw: memoryview) -> str:
    return bytes(raw).decode("utf-8")


def _checksum(data: memoryview) -> int:
    found = 0
    for start in range(0, len(data), PIECE):
        found = zlib.crc32(data[start : start + PIECE], found)
    return found
