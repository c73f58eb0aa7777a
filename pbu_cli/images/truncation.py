"""Load an opened image, and refuse one whose data stop early.

Pillow refuses a file that ends too soon. It accepts a file that ends properly and holds too few
rows: what is missing then becomes black, or grey in a JPEG. Not noticed are up to eight bytes that
a JPEG lacks, what the last scan of a progressive JPEG lacks, and lines that a fax TIFF lacks.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from typing import BinaryIO, cast

from PIL import Image, ImageFile, JpegImagePlugin
from PIL.Image import core  # type: ignore[attr-defined]

from pbu_cli.images.image_limits import SEVERAL_SCANS, check_memory

STOPS_EARLY = "its data stop early"
INKS = (165, 0)  # two values for a pixel; 1-bit images have two different ones as well
MAX_SCANS = 200  # of a JPEG; each is decoded over the whole image, and usual are up to about 20

# In the data of a scan 0xFF stands before 0x00, before a restart marker, or is repeated as padding.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_ARITHMETIC = re.compile(rb"\xff[\xc9-\xcb\xcd-\xcf]")
EOI, SOS = b"\xff\xd9", 0xDA
WIDTH, HEIGHT, BITS, PHOTOMETRIC, SAMPLES = 256, 257, 258, 262, 277  # tags of a TIFF
STRIPS, STRIP_BYTES, TILES, TILE_BYTES = 273, 279, 324, 325
YCBCR = 6  # a value of PHOTOMETRIC
# libjpeg reads up to eight bytes ahead. Decoded as a Huffman code, these bits are the longest codes
# there are, so that they make up for as little missing data as possible.
_READ_AHEAD = b"\xfe" * 8


def load_whole(image: ImageFile.ImageFile) -> None:
    """Decode an image that was opened from a file object. Raises what Pillow raises, and
    ValueError where the data stop early."""
    file = cast(BinaryIO, image.fp)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        _load_jpeg(image, file)
    elif image.format == "PNG":
        # The marked pixel may have the colour of the mark by chance, but not that of two marks.
        if _keeps_mark(image, INKS[0]):
            file.seek(0)
            again = Image.open(file, formats=["PNG"])
            if _keeps_mark(again, INKS[1]):
                raise ValueError(STOPS_EARLY)
    else:
        if image.format == "TIFF":
            _check_strips(image, file)
        image.load()


def _keeps_mark(image: ImageFile.ImageFile, ink: int) -> bool:
    """Load a PNG; whether the pixel that is decoded last keeps the value that it had before."""
    width, height = image.size
    x, y = width - 1, height - 1
    if image.info.get("interlace"):
        if height > 1:  # the last pass is over the odd rows
            y = 2 * (height // 2) - 1
        elif width > 1:  # of a single row it is over the odd columns
            x = 2 * (width // 2) - 1
    image.im = core.new(image.mode, image.size)
    image.im.putpixel((x, y), (ink,) * image.im.bands if image.im.bands > 1 else ink)
    mark = image.im.getpixel((x, y))
    image.load()
    return bool(image.im.getpixel((x, y)) == mark)


def _load_jpeg(image: JpegImagePlugin.JpegImageFile, file: BinaryIO) -> None:
    """Load a JPEG without the marker at its end, so that libjpeg cannot make up what is missing.

    At that marker libjpeg pads with grey. Without it Pillow finds that the file is truncated.
    """
    # Pillow has read up to the data of the first scan, but for MPO it has gone back to the start.
    start = file.tell() if image.format == "JPEG" else 0
    file.seek(0)
    size = os.fstat(file.fileno()).st_size
    data = file.read(size)  # without the size it asks the system for more
    start = start or next((end for marker, _, end in _segments(data) if marker == SOS), 0)
    end = data.find(EOI, start)
    if image.info.get("progressive") or data.find(b"\xff\xda", start, end) >= 0 or end < 0:
        check_memory(image, size, SEVERAL_SCANS)
        _check_scans(data, {layer[0] for layer in image.layer})
        image.load()
        return
    image.fp = io.BytesIO(data[:end] + _READ_AHEAD)
    try:
        image.load()
    except OSError:
        if not _ARITHMETIC.search(data, 0, start):
            raise
        image.fp = file  # libjpeg's arithmetic decoder needs the marker
        image.load()


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, begin, end) of every segment of a JPEG; the data of a scan are skipped."""
    at = 2
    while (found := _MARKER.search(data, at)) and found[0] != EOI:
        begin = found.end()
        at = begin + int.from_bytes(data[begin : begin + 2], "big")
        yield found[1][0], begin + 2, at


def _check_scans(data: bytes, components: set[int]) -> None:
    """Raise ValueError where scans of a JPEG are missing, by the headers of those that are there.

    Every component needs its DC coefficient, and a coefficient that is sent needs all its bits.
    Source: ITU T.81, B.2.3 and G.1.
    """
    missing = {(component, 0): 1 for component in components}  # bits by component and coefficient
    scans = 0
    for marker, begin, end in _segments(data):
        if marker != SOS:
            continue
        scans += 1
        if scans > MAX_SCANS:
            raise ValueError(f"over {MAX_SCANS} scans; expected fewer")
        header = data[begin:end]
        if len(header) < 4 or len(header) != 4 + 2 * header[0]:
            continue  # libjpeg refuses it
        first, last, bits = header[-3:]
        for component in header[1:-3:2]:
            for coefficient in range(first, min(last, 63) + 1):
                missing[component, coefficient] = bits & 15
    if any(missing.values()):
        raise ValueError(STOPS_EARLY)


def _check_strips(image: ImageFile.ImageFile, file: BinaryIO) -> None:
    """Raise ValueError for a TIFF whose strips or tiles are shorter than their pixels.

    libtiff notices this itself, except in JPEG data. Uncompressed data are read by Pillow, which
    goes on reading behind the strip.
    """
    tags = image.tag_v2  # type: ignore[attr-defined]
    compression = image.info.get("compression")
    places = tags.get(STRIPS) or tags.get(TILES) or ()
    counts = tags.get(STRIP_BYTES) or tags.get(TILE_BYTES) or ()
    if not counts or min(counts) <= 0 or sum(counts) > os.fstat(file.fileno()).st_size:
        return  # some writers leave the counts out, or at 0
    if compression == "raw" and tags.get(PHOTOMETRIC) != YCBCR:  # which stores less of the colour
        bits = tags.get(BITS, (1,))
        row = tags[WIDTH] * (sum(bits) if len(bits) > 1 else bits[0] * tags.get(SAMPLES, 1))
        if sum(counts) < -(-row // 8) * tags[HEIGHT]:
            raise ValueError(STOPS_EARLY)
    elif compression == "jpeg":
        for place, count in zip(places, counts, strict=False):
            file.seek(place)
            if EOI not in file.read(count):
                raise ValueError(STOPS_EARLY)
