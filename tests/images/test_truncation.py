"""Images whose data stop early are refused, and whole ones are read as Pillow reads them."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pbu_cli.errors import ImageError
from pbu_cli.images import truncation
from pbu_cli.images.image_files import decode_image, fit_centre
from tests.images.made_images import noise, png, read, save

EOI = b"\xff\xd9"


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def loaded(data: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def whole(folder: Path, data: bytes) -> bool:
    """Whether the file is read, and then as Pillow reads it."""
    path = folder / "x.png"
    path.write_bytes(data)
    try:
        found = read(path)
    except ImageError:
        return False
    assert (found == loaded(data)).all()
    return True


def photo(height: int = 45, width: int = 61) -> Image.Image:
    return Image.fromarray(noise(height, width, 3))


# PNG


def png_rows(mode: str, rows: float, *, interlace: bool = False) -> bytes:
    """A PNG of 9 rows of 7 pixels whose proper zlib stream holds only this part of the data."""
    bits, colour = {"1": (1, 0), "L": (8, 0), "RGB": (8, 2), "RGBA": (8, 6), "16": (16, 0)}[mode]
    samples = {0: 1, 2: 3, 6: 4}[colour]

    def size(width: int, height: int) -> int:
        return height * (1 + -(-width * bits * samples // 8)) if width else 0

    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2)]  # fmt: skip
    total = (
        sum(size(-(-(7 - x) // dx), -(-(9 - y) // dy)) for x, y, dx, dy in passes)
        if interlace
        else size(7, 9)
    )
    body = bytes(total)[: int(total * rows)]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 7, 9, bits, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
    )


@pytest.mark.parametrize("interlace", [False, True])
@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "16"])
def test_a_png_with_too_few_rows_is_refused(tmp_path: Path, mode: str, interlace: bool) -> None:
    path = tmp_path / "x.png"
    for rows in (0.2, 0.5, 0.9, 0.98):
        path.write_bytes(png_rows(mode, rows, interlace=interlace))
        with pytest.raises(ImageError, match=r"its data stop early|truncated"):
            read(path)
    path.write_bytes(png_rows(mode, 1, interlace=interlace))
    assert read(path).shape == (9, 7, 3)


@pytest.mark.parametrize("ink", truncation.INKS)
def test_an_image_whose_last_pixel_has_the_colour_of_the_mark_is_read(
    tmp_path: Path, ink: int
) -> None:
    for mode in ("L", "RGB", "RGBA", "LA"):
        image = Image.new(mode, (5, 4), (ink,) * len(mode) if len(mode) > 1 else ink)
        assert whole(tmp_path, encoded(image, "PNG"))
    assert whole(tmp_path, encoded(Image.new("1", (5, 4), ink), "PNG"))


def test_the_published_trial_is_refused(shared: Path) -> None:
    with pytest.raises(ValueError, match="its data stop early"):
        decode_image(shared / "trials" / "png_2_of_8_rows.png", "L", (8, 8), fit_centre)


def test_a_png_by_hand_with_all_rows_is_read(tmp_path: Path) -> None:
    assert whole(tmp_path, png(2, 2, bytes(14)))
    assert not whole(tmp_path, png(2, 2, bytes(7)))


# JPEG


@pytest.mark.parametrize("kind", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("restart", [0, 3])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_jpeg_whose_scan_ends_early_is_refused(
    tmp_path: Path, kind: str, restart: int, subsampling: int
) -> None:
    options = {"subsampling": subsampling} if kind == "RGB" else {}
    data = encoded(photo().convert(kind), "JPEG", restart_marker_blocks=restart, **options)
    assert whole(tmp_path, data)
    start = data.index(b"\xff\xda") + 14
    for part in (30, (len(data) - start) // 2, len(data) - start - 20):
        cut = data[: start + part].rstrip(b"\xff")
        assert not whole(tmp_path, cut + EOI)
        assert not whole(tmp_path, cut)


@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    content=st.sampled_from([0, 2, 64, 255]),
    mode=st.sampled_from(["L", "RGB", "CMYK"]),
    options=st.fixed_dictionaries(
        {
            "quality": st.sampled_from([1, 30, 75, 95, 100]),
            "progressive": st.booleans(),
            "restart_marker_blocks": st.sampled_from([0, 1, 5]),
        }
    ),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_whole_jpeg_is_refused(
    tmp_path: Path, size: tuple[int, int], content: int, mode: str, options: dict[str, Any]
) -> None:
    """Nor is its picture changed, whatever its size, quality and content."""
    image = Image.fromarray(noise(*size, 3) & content).convert(mode)
    assert whole(tmp_path, save(tmp_path / "x.jpg", image, **options).read_bytes())


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_progressive_jpeg_that_lacks_scans_is_refused(tmp_path: Path, mode: str) -> None:
    data = encoded(photo().convert(mode), "JPEG", progressive=True)
    assert whole(tmp_path, data)
    scans = [found.start() for found in re.finditer(rb"\xff\xda", data)]
    assert len(scans) > 4
    for scan in scans[1:]:
        assert not whole(tmp_path, data[:scan] + EOI)
        assert not whole(tmp_path, data[: scan - 5].rstrip(b"\xff") + EOI)


def test_a_jpeg_with_very_many_scans_is_refused(tmp_path: Path) -> None:
    """Each scan is decoded over the whole image."""
    data = encoded(photo(), "JPEG", progressive=True)
    scans = [found.start() for found in re.finditer(rb"\xff\xda", data)]
    last = data[scans[-1] : -2]
    path = tmp_path / "x.jpg"
    path.write_bytes(data[:-2] + last * 300 + EOI)
    with pytest.raises(ImageError, match="over 200 scans"):
        read(path)


def test_what_stands_behind_the_end_of_a_jpeg_does_not_matter(tmp_path: Path) -> None:
    data = encoded(photo(), "JPEG")
    for more in (b"\0" * 100, EOI, data, b"\xff\xda" + bytes(50) + EOI):
        assert whole(tmp_path, data + more)


def test_a_picture_with_a_second_one_for_phones_is_read(tmp_path: Path) -> None:
    file = io.BytesIO()
    photo().save(file, "MPO", save_all=True, append_images=[photo()])
    data = file.getvalue()
    assert whole(tmp_path, data)
    scan = data.index(b"\xff\xda")
    assert not whole(tmp_path, data[: scan + 300].rstrip(b"\xff") + data[data.index(EOI, scan) :])


def test_thumbnails_in_the_header_are_not_the_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 40
    blob = exif.tobytes() + encoded(photo(8, 8), "JPEG")
    assert whole(tmp_path, encoded(photo(), "JPEG", exif=blob))


# TIFF, GIF and the others


def tiff_with(data: bytes, tag: int, change: Callable[[int], int]) -> bytes:
    """The TIFF with the last value of a tag changed."""
    edited = bytearray(data)
    (at,) = struct.unpack_from("<I", data, 4)
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
        found, kind, count, _ = struct.unpack_from("<HHII", data, entry)
        if found == tag:
            form = {3: "<H", 4: "<I"}[kind]
            size = struct.calcsize(form)
            place = entry + 8 if count * size <= 4 else struct.unpack_from("<I", data, entry + 8)[0]
            place += (count - 1) * size
            struct.pack_into(form, edited, place, change(struct.unpack_from(form, data, place)[0]))
    return bytes(edited)


@pytest.mark.parametrize("rows", [8, 1000])
@pytest.mark.parametrize(
    "compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"]
)
def test_a_tiff_with_a_short_strip_is_refused(tmp_path: Path, compression: str, rows: int) -> None:
    for mode in ("L", "RGB"):
        options: dict[str, Any] = {} if compression == "raw" else {"compression": compression}
        path = save(tmp_path / "y.tif", photo().convert(mode), tiffinfo={278: rows}, **options)
        data = path.read_bytes()
        assert whole(tmp_path, data)
        assert not whole(tmp_path, tiff_with(data, 279, lambda size: size // 2))
        assert not whole(tmp_path, data[: len(data) // 2])


def test_a_tiff_without_the_sizes_of_its_strips_is_read(tmp_path: Path) -> None:
    data = save(tmp_path / "y.tif", photo()).read_bytes()
    assert whole(tmp_path, tiff_with(data, 279, lambda size: 0))


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("transparency", [None, 3])
def test_a_gif_that_ends_early_is_refused(
    tmp_path: Path, interlace: int, transparency: int | None
) -> None:
    """Its compressed data end with the code for the end, long before the last row."""
    options = {} if transparency is None else {"transparency": transparency}
    image = Image.fromarray(noise(9, 40) % 4)
    whole_file = encoded(image, "GIF", interlace=interlace, **options)
    path = tmp_path / "x.gif"
    path.write_bytes(whole_file)
    assert (read(path)[..., 0] == loaded(whole_file)[..., 0]).all()
    with Image.open(path) as opened:
        start = opened.tile[0].offset
    bits = whole_file[start - 1]
    # Clear, one pixel, end; each code has bits + 1 bits.
    codes = (1 << bits) | 1 << (bits + 1) | ((1 << bits) + 1) << 2 * (bits + 1)
    few = codes.to_bytes(-(-3 * (bits + 1) // 8), "little")
    path.write_bytes(whole_file[:start] + bytes([len(few)]) + few + b"\0;")
    with pytest.raises(ImageError, match="truncated"):  # Pillow notices this itself
        read(path)


@pytest.mark.parametrize("kind", ["BMP", "WEBP", "AVIF", "PPM", "TIFF", "GIF", "PNG", "JPEG"])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, kind: str) -> None:
    data = save(tmp_path / f"x.{kind.lower()}", photo(), format=kind).read_bytes()
    assert whole(tmp_path, data)
    for part in (0.3, 0.6, 0.9):
        assert not whole(tmp_path, data[: int(part * len(data))])


def test_a_frame_that_leaves_a_part_of_a_gif_out_is_read(tmp_path: Path) -> None:
    data = bytearray(encoded(Image.fromarray(noise(5, 5)), "GIF", interlace=0))
    struct.pack_into("<HH", data, 6, 9, 8)
    path = tmp_path / "x.gif"
    path.write_bytes(data)
    assert (read(path) == loaded(bytes(data))).all()
