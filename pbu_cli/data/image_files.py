"""One image file -> uint8 pixels. Its size is checked before anything is decoded."""

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

# These imports register the plugins with Pillow. Without them Image.open would load all plugins.
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
from pbu_cli.settings import SMALL_IMAGE

Size = tuple[int, int]  # height, width

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name of an image of so many channels
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
MARGIN = 1 / 16  # cut off each side of large images: of 256 pixels the inner 224 are kept

MAX_PIXELS = 100_000_000  # in one image; Pillow needs up to 4 bytes for each
MAX_FILE_BYTES = 1 << 30  # some of Pillow's readers read the whole file into memory
LARGE_PIXELS = 1 << 24  # only one image with more pixels than this is decoded at a time
_LARGE_IMAGE_LOCK = threading.Lock()


class Fault(NamedTuple):
    """An image that cannot be used, and the reason."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.path, 200)} ({self.reason})"


def decode_image(path: Path, mode: str, size: Size) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode one image to uint8 [channels, *size]. Raises whatever Pillow raises, and OSError or
    ValueError for a file that is not regular or too large."""
    height, width = size
    with _open_image(path) as file, _large_image_lock(file):
        file.load()
        with suppress(Exception):  # invalid EXIF data rotates nothing, and the pixels are good
            ImageOps.exif_transpose(file, in_place=True)
        image = _to_eight_bits(file).convert(mode)
        if image.size != (width, height):
            margin = MARGIN if max(size) > SMALL_IMAGE else 0.0
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR, margin)
    return np.asarray(image).reshape(height, width, -1).transpose(2, 0, 1)


def channels_of(path: Path) -> int:
    """1 if the image is grey, else 3. Raises ImageError where its header cannot be read."""
    try:
        with quiet_pillow(), _open_image(path) as image:
            return 1 if image.mode.startswith(("1", "L", "I")) else 3
    except Exception as error:  # on hostile content Pillow raises nearly anything
        raise ImageError(
            f"{printable(path)}: cannot be read ({reason_of(error)}); expected an image: repair or"
            " remove it"
        ) from None


def header_size(path: Path) -> Size | None:
    """(height, width) after EXIF rotation, from the header; None if it cannot be read."""
    try:
        with _open_image(path) as image:
            width, height = image.size
            if width == height:  # rotation changes nothing, and a PNG's EXIF may be at its end
                return height, width
            transposed = image.getexif().get(ExifTags.Base.Orientation) in TRANSPOSED
            if transposed and image.format == "TIFF":  # Pillow rotates TIFF itself when it loads
                image.load()
                width, height = image.size
                return height, width
            return (width, height) if transposed else (height, width)
    except Exception:  # on hostile content Pillow raises nearly anything
        return None


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's warnings and log lines off the terminal; what matters is raised as an error."""
    logger, silent = logging.getLogger("PIL"), logging.NullHandler()
    logger.addHandler(silent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(silent)


def reason_of(error: Exception) -> str:
    """Why an image cannot be read, in a few printable words."""
    if isinstance(error, UnidentifiedImageError):
        return "not PNG, JPEG, WebP, BMP or TIFF"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(str(error) or type(error).__name__, 100)


@contextmanager
def _open_image(path: Path) -> Iterator[ImageFile.ImageFile]:
    """The image with its header read and its size checked. Raises whatever Pillow raises.

    Pillow gets the open file instead of the path. So it reads the file that was checked, and does
    not map it into memory.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise ValueError(f"{size:,} bytes; expected at most {MAX_FILE_BYTES:,}")
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                shown = f"{width}x{height} pixels"
                raise ValueError(f"{shown}; expected at most {MAX_PIXELS:,} in all")
            yield image


def _large_image_lock(image: Image.Image) -> AbstractContextManager[object]:
    """The lock to hold while a large image is decoded: the largest ones allowed take 800 MB."""
    width, height = image.size
    return _LARGE_IMAGE_LOCK if width * height > LARGE_PIXELS else nullcontext()


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits, which Pillow's own conversion would clip; else unchanged."""
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a sample; expected 8 or 16")
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
