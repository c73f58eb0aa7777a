"""What one image may take: pixels, bytes of its file, and memory while it is decoded.

The memory is estimated before anything is decoded. The numbers of bytes for each pixel are measured
with Pillow 13 and rounded up.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from PIL import ImageFile

MAX_PIXELS = 100_000_000  # in one image
MAX_FILE_BYTES = 400_000_000
MAX_WHOLE_BYTES = 1 << 27  # of a WebP or AVIF, which Pillow reads whole and copies
MAX_IMAGE_BYTES = 850_000_000  # of memory that one image may take; the most measured is 800 MB
MAX_SLOW_PIXELS = 1 << 22  # where Pillow decodes with code in Python, at about 1 s for a million
MAX_TAG_NUMBERS = 1 << 22  # in the tags of a TIFF; each takes about 36 bytes of memory

CONVERTED = 4  # bytes a pixel of the copy that is turned, or that has another mode
DECODING = {"WEBP": 13, "AVIF": 13, "TIFF": 8}  # bytes a pixel that the decoder itself takes
SEVERAL_SCANS = 8  # of a JPEG with several scans: two bytes for each coefficient
FILE_HELD = {"JPEG": 2, "MPO": 2, "WEBP": 1, "AVIF": 1}  # copies of the file while it is decoded
FILE_KEPT = {"PNG": 1}  # and afterwards: at worst the file is one chunk that Pillow keeps
SLOW_CODECS = ("bmp_rle", "ppm", "ppm_plain")


def check_file(file: BinaryIO) -> int:
    """The size of an open file. Raises ValueError for one that is too large to be read."""
    size, start = os.fstat(file.fileno()).st_size, file.read(16)
    whole = start.startswith(b"RIFF") or start[4:8] == b"ftyp"
    limit = MAX_WHOLE_BYTES if whole else MAX_FILE_BYTES
    if size > limit:
        raise ValueError(f"{size:,} bytes; expected at most {limit:,}")
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        numbers = _numbers_in_tags(file, start)
        if numbers > MAX_TAG_NUMBERS:
            raise ValueError(f"{numbers:,} numbers in tags; expected at most {MAX_TAG_NUMBERS:,}")
    file.seek(0)
    return size


def _numbers_in_tags(file: BinaryIO, start: bytes) -> int:
    """How many numbers the tags of a TIFF's first image hold; bytes and text do not count.

    Source: TIFF 6.0, section 2, and BigTIFF.
    """
    order = "<" if start.startswith(b"I") else ">"
    big = b"+" in start[2:4]
    place, number, entry = ("Q", "Q", "HHQ8x") if big else ("I", "H", "HHI4x")
    at = 8 if big else 4
    try:
        file.seek(struct.unpack_from(order + place, start, at)[0])
        head = file.read(struct.calcsize(order + number))
        count = min(struct.unpack(order + number, head)[0], 1 << 16)
        entries = file.read(count * struct.calcsize(order + entry))
        found = struct.iter_unpack(order + entry, entries)
        return sum(several for _, kind, several in found if kind not in (1, 2, 7))
    except (struct.error, OSError, OverflowError):
        return 0  # Pillow refuses it


def check_memory(image: ImageFile.ImageFile, file_bytes: int, decoding: int = 0) -> None:
    """Raise ValueError for an image that takes too much memory or time, judged by its header.

    decoding: bytes a pixel that its decoder is known to take.
    """
    (width, height), kind = image.size, image.format or ""
    pixels, shown = width * height, f"{width}x{height} pixels"
    if pixels > MAX_PIXELS:
        raise ValueError(f"{shown}; expected at most {MAX_PIXELS:,} in all")
    codec = image.tile[0].codec_name if image.tile else ""
    if codec in SLOW_CODECS and pixels > MAX_SLOW_PIXELS:
        raise ValueError(f"{shown}; expected at most {MAX_SLOW_PIXELS:,} in a {kind} of this kind")
    if kind != "TIFF" or codec == "libtiff":
        decoding = max(decoding, DECODING.get(kind, 0))
    stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    while_decoded = pixels * decoding + FILE_HELD.get(kind, 0) * file_bytes
    afterwards = pixels * CONVERTED + FILE_KEPT.get(kind, 0) * file_bytes
    need = pixels * stored + max(while_decoded, afterwards)
    if need > MAX_IMAGE_BYTES:
        raise ValueError(
            f"{shown} of {kind} need {need / 1e6:,.0f} MB of memory; expected at most"
            f" {MAX_IMAGE_BYTES / 1e6:,.0f} MB"
        )
