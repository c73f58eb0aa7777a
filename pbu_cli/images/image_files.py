"""One image file -> uint8 pixels. Its size is checked before anything is decoded."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

# These imports register the plugins with Pillow. Without them Image.open would load all plugins.
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pbu_cli.errors import ImageError, printable
from pbu_cli.images.image_faults import reason_of
from pbu_cli.images.image_limits import MAX_PIXELS, check_file, check_memory
from pbu_cli.images.truncation import load_whole
from pbu_cli.io.regular_files import open_regular
from pbu_cli.settings import SMALL_IMAGE

Size = tuple[int, int]  # height, width
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Fit = Callable[[Image.Image, Size], Image.Image]  # resizes an image to this size

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name of an image of so many channels
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
MARGIN = 1 / 16  # cut off each side of large images: of 256 pixels the inner 224 are kept

LARGE_PIXELS = 1 << 24  # only one image with more pixels than this is decoded at a time
_LARGE_IMAGE_LOCK = threading.Lock()


def decode_image(
    path: Path, mode: str, size: Size, fit: Fit, *, exif_rotation: bool = True
) -> Pixels:
    """Decode one image to uint8 [channels, *size]; see `decode` for the rest.

    Raises whatever Pillow raises, and OSError or ValueError for a file that is not regular, is too
    large or stops early.
    """
    height, width = size
    with _open_image(path) as file, _large_image_lock(file):
        load_whole(file)
        if exif_rotation:
            with suppress(Exception):  # invalid EXIF data rotates nothing, and the pixels are good
                ImageOps.exif_transpose(file, in_place=True)
        image = _to_eight_bits(file)
        image = image if image.mode == mode else image.convert(mode)
        image = fit(image, size)
        pixels = np.asarray(image)
    return pixels.reshape(height, width, -1).transpose(2, 0, 1)


def fit_centre(image: Image.Image, size: Size) -> Image.Image:
    """Resize an image to cover the size and keep the centre, of large images without a margin.

    An image that has this size stays as it is.
    """
    height, width = size
    if image.size == (width, height):
        return image
    margin = MARGIN if max(size) > SMALL_IMAGE else 0.0
    return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR, margin)


def fit_whole_pixels(image: Image.Image, size: Size) -> Image.Image:
    """The same without a margin, as torchvision does it: resize the shorter side, then crop.

    The longer side and the place of the crop are rounded to whole pixels. For squares only.
    """
    side, shorter = size[0], min(image.size)
    if image.size == (side, side):
        return image
    width, height = (side * length // shorter for length in image.size)
    if width * height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels; too oblong for {side}x{side}")
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (round((length - side) / 2) for length in resized.size)
    return resized.crop((left, top, left + side, top + side))


def channels_of(path: Path) -> int:
    """1 if the image is grey, else 3. Raises ImageError where its header cannot be read."""
    try:
        with quiet_pillow(), _open_image(path) as image:
            return 1 if image.mode.startswith(("1", "L", "I")) else 3
    except Exception as error:  # on hostile content Pillow raises nearly anything
        raise ImageError(
            f"{printable(path)}: cannot be read ({reason_of(error, path)}); expected an image:"
            " repair or remove it"
        ) from None


def header_size(path: Path, *, exif_rotation: bool = True) -> Size | None:
    """(height, width) after EXIF rotation, from the header; None if it cannot be read."""
    try:
        with _open_image(path) as image:
            width, height = image.size
            # A PNG's EXIF may be at its end: a square is not searched for it. Of a TIFF Pillow
            # itself has turned the size already.
            if width == height or image.format == "TIFF" or not exif_rotation:
                return height, width
            transposed = image.getexif().get(ExifTags.Base.Orientation) in TRANSPOSED
            return (width, height) if transposed else (height, width)
    except Exception:  # on hostile content Pillow raises nearly anything
        return None


def has_frames(path: Path) -> bool:
    """Whether a GIF, WebP, AVIF or PNG holds several frames; False if it cannot be read."""
    try:
        with quiet_pillow(), _open_image(path) as image:
            return image.format != "TIFF" and bool(getattr(image, "is_animated", False))
    except Exception:  # on hostile content Pillow raises nearly anything
        return False


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


@contextmanager
def _open_image(path: Path) -> Iterator[ImageFile.ImageFile]:
    """The image with its header read and its size checked. Raises whatever Pillow raises.

    Pillow gets the open file instead of the path. So it reads the file that was checked, and does
    not map it into memory.
    """
    with open_regular(path) as file:
        size = check_file(file)
        with Image.open(file, formats=FORMATS) as image:
            check_memory(image, size)
            yield image


def _large_image_lock(image: Image.Image) -> AbstractContextManager[object]:
    """The lock to hold while a large image is decoded: it may take MAX_IMAGE_BYTES."""
    width, height = image.size
    return _LARGE_IMAGE_LOCK if width * height > LARGE_PIXELS else nullcontext()


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits, which Pillow's own conversion would clip; else unchanged."""
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    if image.mode in ("I", "F") and not sixteen:
        raise ValueError("32 bits a sample; expected 8 or 16")
    if not sixteen:
        return image
    samples = np.asarray(image)
    pixels = np.empty(samples.shape, np.uint8)
    for chunk, scaled in zip(_chunks(samples), _chunks(pixels), strict=True):
        scaled[:] = (chunk.astype(np.uint32) + 128) // 257
    return Image.fromarray(pixels)


def _chunks(values: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """Views of the values, about a million each."""
    flat = values.reshape(-1)
    return (flat[start : start + (1 << 20)] for start in range(0, flat.size, 1 << 20))
