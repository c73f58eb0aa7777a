"""One image file -> uint8 pixels, with its size bounded before anything is decoded."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Imported for their registration with Pillow: Image.open would else load all of its plugins.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    ExifTags,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from pbu_cli.errors import ImageError, printable
from pbu_cli.io.regular_files import open_regular
from pbu_cli.settings import SMALL

Size = tuple[int, int]  # height, width

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height

MOST_PIXELS = 100_000_000  # an image; Pillow holds up to 4 bytes for each
MOST_BYTES = 1 << 30  # a file; some of Pillow's readers take it in whole
LARGE = 1 << 24  # pixels; an image of more is decoded while no other such one is
_LARGE_ONE = threading.Lock()
BLEED = 1 / 16  # ... larger ones on the inner 224 of 256: 1/16 off on every side


class Fault(NamedTuple):
    """An image that cannot be used, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.path, 200)} ({self.reason})"


def channels_of(path: Path) -> int:
    """1 if the image is grey, else 3. Raises ImageError where its header cannot be read."""
    try:
        with quiet_pillow(), _opened(path) as image:
            return 1 if image.mode.startswith(("1", "L", "I")) else 3
    except Exception as error:  # as in `decode`
        raise ImageError(f"{printable(path)}: cannot be read ({reason_of(error)})") from None


def decode_image(path: Path, mode: str, size: Size) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode one image to uint8 [channels, *size]."""
    height, width = size
    with _opened(path) as file, _in_turn(file):
        file.load()
        with suppress(Exception):  # EXIF that makes no sense turns nothing; the pixels are fine
            ImageOps.exif_transpose(file, in_place=True)
        image = _in_eight_bits(file).convert(mode)
        if image.size != (width, height):
            bleed = BLEED if max(size) > SMALL else 0.0
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR, bleed)
    return np.asarray(image).reshape(height, width, -1).transpose(2, 0, 1)


def _in_turn(image: Image.Image) -> AbstractContextManager[object]:
    """What to hold while decoding: of the largest that are accepted, one takes 800 MB."""
    width, height = image.size
    return _LARGE_ONE if width * height > LARGE else nullcontext()


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8, where Pillow's own conversion clips; other modes as they are."""
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a sample; expected 8 or 16")
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """The image with its header read and found harmless. Raises whatever Pillow does.

    Pillow gets the open file, so that it reads what was looked at, and maps nothing into memory.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_BYTES:
            raise ValueError(f"{size:,} bytes; expected at most {MOST_BYTES:,}")
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                shown = f"{width}x{height} pixels"
                raise ValueError(f"{shown}; expected at most {MOST_PIXELS:,} in all")
            yield image


def header_size(path: Path) -> Size | None:
    """(height, width) after EXIF rotation; None if the header cannot be read."""
    try:
        with _opened(path) as image:
            width, height = image.size
            if width == height:  # turning changes nothing, and a PNG's EXIF may stand at its end
                return height, width
            turned = image.getexif().get(ExifTags.Base.Orientation) in TURNED
            if turned and image.format == "TIFF":  # the reader turns it, at the latest in load
                image.load()
                width, height = image.size
                return height, width
            return (width, height) if turned else (height, width)
    except Exception:  # as in `decode`
        return None


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's warnings and log lines off the terminal: what matters of them is raised."""
    logger, silent = logging.getLogger("PIL"), logging.NullHandler()
    logger.addHandler(silent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(silent)


def reason_of(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not PNG, JPEG, WebP, BMP or TIFF"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(str(error) or type(error).__name__, 100)
