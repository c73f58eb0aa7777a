"""Groups of image files -> uint8 pixels, in the groups' order.

PNG, JPEG, WebP, BMP and TIFF, told apart by content; of several frames or pages the first. Pixels
come out as training pipelines have them (`convert("RGB")` of torchvision's ImageFolder and timm):
alpha is dropped, not composited; grey is repeated, colour becomes luma; EXIF rotation is applied.

What is in a file is not trusted: only regular files are open_session, and sizes are bounded before
anything is decoded.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

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
from torch import Tensor

from pbu_cli.data.image_files import (
    MODES,
    Fault,
    Size,
    decode_image,
    header_size,
    quiet_pillow,
    reason_of,
)
from pbu_cli.data.image_folders import EXPECTED, Group
from pbu_cli.errors import ImageError, printable
from pbu_cli.runtime.device import memory

Result = TypeVar("Result")
MOST_WORKERS = 16
WORTH_A_THREAD = 2048  # bytes; of smaller files two threads decode fewer a second than one does
MOST_AT_ONCE = 32  # images a task: a 28x28 PNG is decoded faster than a task is handed out
FAULTS_SHOWN = 3


@dataclass(frozen=True)
class DecodedImages:
    """Decoded images: pixels uint8 [n, c, h, w]; group int64 [n], index into the groups; bad: the
    files left out under --skip-bad."""

    pixels: Tensor
    group: Tensor
    bad: tuple[Fault, ...] = ()


def common_size(groups: Sequence[Group], workers: int | None = None) -> Size | None:
    """(height, width) if all images share it after EXIF rotation, else None.

    Reads headers only; images whose header cannot be read are left to `decode`.
    """
    sizes = _two_sizes(groups, workers)
    return next(iter(sizes)) if len(sizes) == 1 else None


def decode(
    groups: Sequence[Group],
    *,
    channels: int,
    size: Size | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    progress: Callable[[int], None] | None = None,
) -> DecodedImages:
    """Decode all images to uint8 [n, channels, *size], group after group.

    An image of that size is taken as it is. Any other is resized (bilinear, antialiased, aspect
    kept) to cover the size, and the centre is kept; for sizes above 96 pixels with the margin of
    the usual evaluation transform, resize to 256 and crop 224. Size None: the images' own, one
    for all. 16-bit grey v becomes round(v / 257). `progress` hears how many images are done.

    Raises ImageError, with all faults counted and the first ones named, where an image cannot be
    read (with `skip_bad`: where a group has none left), and where the total exceeds the memory.
    """
    if channels not in MODES:
        raise ImageError(
            f"{channels} channels asked for; expected 1 (grey), 3 (RGB) or 4 (RGBA): image files do"
            " not hold what this network takes"
        )
    height, width = size or _own_size(groups, workers)
    paths = [path for group in groups for path in group.paths]
    shape = (len(paths), channels, height, width)
    _check_memory(shape)
    pixels = torch.empty(shape, dtype=torch.uint8)
    view = pixels.numpy()

    def read(index: int) -> Fault | None:
        try:
            view[index] = decode_image(paths[index], MODES[channels], (height, width))
        except Exception as error:  # on hostile content Pillow raises nearly anything
            return Fault(paths[index], reason_of(error))
        return None

    faults: dict[int, Fault] = {}
    with quiet_pillow():
        for index, fault in enumerate(_in_parallel(read, paths, workers)):
            if fault is not None:
                faults[index] = fault
            if progress is not None:
                progress(index + 1)

    bad = tuple(faults.values())
    if bad and not skip_bad and len(bad) < len(paths):
        raise ImageError(
            f"{len(bad)} of {len(paths)} images cannot be read: {_first(bad)}; mend or remove"
            " them, or pass --skip-bad to go on without them"
        )
    for group in groups:
        members = set(group.paths)
        inside = [fault for fault in bad if fault.path in members]
        if len(inside) == len(group.paths):
            raise ImageError(
                f"{printable(group.root or 'stdin')}: none of {len(inside)} images can be read:"
                f" {_first(inside)}; expected {EXPECTED}"
            )
    good = [index for index in range(len(paths)) if index not in faults]
    if bad:
        for place, index in enumerate(good):  # in place: a copy might not fit into memory
            pixels[place] = pixels[index]
    owners = torch.tensor([k for k, g in enumerate(groups) for _ in g.paths], dtype=torch.int64)
    return DecodedImages(pixels[: len(good)], owners[good], bad)


def _two_sizes(groups: Sequence[Group], workers: int | None) -> dict[Size, Path]:
    """The first two sizes found, each with its first image; fewer if there are fewer."""
    paths = [path for group in groups for path in group.paths]
    sizes: dict[Size, Path] = {}
    with (
        quiet_pillow(),
        closing(_in_parallel(lambda index: header_size(paths[index]), paths, workers)) as found,
    ):
        for path, size in zip(paths, found, strict=False):
            if size is not None:
                sizes.setdefault(size, path)
            if len(sizes) == 2:
                break
    return sizes


def _own_size(groups: Sequence[Group], workers: int | None) -> Size:
    sizes = _two_sizes(groups, workers)
    if len(sizes) > 1:
        first, second = (f"{printable(p, 200)} {h}x{w}" for (h, w), p in sizes.items())
        raise ImageError(
            f"images of different sizes: {first}, {second} (height x width); expected one size, or"
            " --size to resize them to"
        )
    return next(iter(sizes), (1, 1))  # no header can be read: `decode` names the images


def _check_memory(shape: tuple[int, ...]) -> None:
    """ImageError if uint8 of this shape exceeds the memory of the machine or of the container."""
    need = math.prod(shape)
    if need > memory():
        number, channels, height, width = shape
        raise ImageError(
            f"{number} images of {channels}x{height}x{width} need {need / 1e9:.0f} GB of memory;"
            f" expected at most {memory() / 1e9:.0f} GB: pass a smaller --size or fewer images"
        )


def _in_parallel(
    work: Callable[[int], Result], paths: Sequence[Path], workers: int | None
) -> Generator[Result, None, None]:
    """work(0), work(1), ... for each of `paths`, in this order, by threads."""
    workers, count = workers or _workers(paths), len(paths)
    step = max(1, min(MOST_AT_ONCE, count // (4 * workers)))
    tasks = [range(start, min(start + step, count)) for start in range(0, count, step)]
    pool = ThreadPoolExecutor(workers)
    try:
        for results in pool.map(lambda task: [work(index) for index in task], tasks):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)  # neither Ctrl-C nor an early end waits for the rest


def _workers(paths: Sequence[Path]) -> int:
    """How many threads are worth it: Pillow decodes without the GIL, but takes turns for it at
    every image, and of small ones that is most of the work."""
    sizes = []
    for path in paths[:: max(1, len(paths) // 32)]:
        with suppress(OSError, ValueError):  # `decode` says which file is none
            sizes.append(path.stat().st_size)
    small = bool(sizes) and statistics.median(sizes) < WORTH_A_THREAD
    return 1 if small else min(os.cpu_count() or 1, MOST_WORKERS)


def _first(faults: Sequence[Fault]) -> str:
    more = len(faults) - FAULTS_SHOWN
    return ", ".join(map(str, faults[:FAULTS_SHOWN])) + (f" and {more} more" if more > 0 else "")
