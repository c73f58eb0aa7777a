"""Groups of image files -> uint8 pixels, in the order of the groups.

PNG, JPEG, WebP, BMP and TIFF are recognised by their content. Of several frames or pages only the
first is read. The pixels are those of training pipelines (`convert("RGB")` in torchvision's
ImageFolder and in timm): alpha is dropped, not composited; grey is repeated; colour becomes luma;
EXIF rotation is applied.

Files are not trusted: only regular files are opened, and sizes are checked before anything is
decoded.
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
MAX_WORKERS = 16
MIN_BYTES_FOR_THREADS = 2048  # two threads decode smaller files more slowly than one does
MAX_IMAGES_PER_TASK = 32  # a 28x28 PNG is decoded faster than a task is handed to a thread
FAULTS_SHOWN = 3


@dataclass(frozen=True)
class DecodedImages:
    """Decoded images.

    pixels: uint8 [n, c, h, w]. group: int64 [n], the index of each image's group. bad: the files
    that --skip-bad left out.
    """

    pixels: Tensor
    group: Tensor
    bad: tuple[Fault, ...] = ()


def common_size(groups: Sequence[Group], workers: int | None = None) -> Size | None:
    """(height, width) if all images have the same after EXIF rotation, else None.

    Only headers are read. Images whose header cannot be read are ignored; `decode` reports them.
    """
    sizes = _first_two_sizes(groups, workers)
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

    An image that has this size is not resized. Any other image is resized (bilinear, antialiased,
    aspect ratio kept) to cover the size, and the centre is kept. Above 96 pixels, a margin is cut
    off as in the usual evaluation transform: resize to 256, crop 224. size None: all images must
    have one size, which is used. A 16-bit grey value v becomes round(v / 257). progress: called
    with the number of images done so far.

    Raises ImageError where an image cannot be read (with `skip_bad`: where no image of a group can
    be), and where all images together exceed the memory. The message counts all faults and names
    the first ones.
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
    faults = _decode_into(pixels, paths, workers, progress)
    bad = tuple(faults.values())
    _check_faults(groups, len(paths), bad, skip_bad)
    good = [index for index in range(len(paths)) if index not in faults]
    if bad:
        for place, index in enumerate(good):  # in place: memory might not hold a copy
            pixels[place] = pixels[index]
    owners = torch.tensor([k for k, g in enumerate(groups) for _ in g.paths], dtype=torch.int64)
    return DecodedImages(pixels[: len(good)], owners[good], bad)


def _decode_into(
    pixels: Tensor,
    paths: Sequence[Path],
    workers: int | None,
    progress: Callable[[int], None] | None,
) -> dict[int, Fault]:
    """Decode each of `paths` into its image of `pixels` [n, c, h, w]; the faults by index."""
    view = pixels.numpy()
    _, channels, height, width = pixels.shape

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
    return faults


def _check_faults(
    groups: Sequence[Group], count: int, bad: Sequence[Fault], skip_bad: bool
) -> None:
    """Raise ImageError if any of `count` images is bad; with `skip_bad`, if all of a group are."""
    if bad and not skip_bad and len(bad) < count:
        raise ImageError(
            f"{len(bad)} of {count} images cannot be read: {_first(bad)}; repair or remove them, or"
            " pass --skip-bad to leave them out"
        )
    for group in groups:
        members = set(group.paths)
        inside = [fault for fault in bad if fault.path in members]
        if len(inside) == len(group.paths):
            raise ImageError(
                f"{printable(group.root or 'stdin')}: none of {len(inside)} images can be read:"
                f" {_first(inside)}; expected {EXPECTED}"
            )


def _first_two_sizes(groups: Sequence[Group], workers: int | None) -> dict[Size, Path]:
    """At most the first two different sizes, each with the first image that has it."""
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
    """The one size of all images. Raises ImageError where they have different sizes."""
    sizes = _first_two_sizes(groups, workers)
    if len(sizes) > 1:
        first, second = (f"{printable(p, 200)} {h}x{w}" for (h, w), p in sizes.items())
        raise ImageError(
            f"images of different sizes: {first}, {second} (height x width); expected one size, or"
            " --size to resize them to"
        )
    return next(iter(sizes), (1, 1))  # no header can be read: `decode` then names the images


def _check_memory(shape: tuple[int, ...]) -> None:
    """Raise ImageError if uint8 of this shape exceeds the memory of the machine or container."""
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
    """work(0), work(1), ... for each of `paths`, in this order, computed by threads."""
    workers, count = workers or _default_workers(paths), len(paths)
    step = max(1, min(MAX_IMAGES_PER_TASK, count // (4 * workers)))
    tasks = [range(start, min(start + step, count)) for start in range(0, count, step)]
    pool = ThreadPoolExecutor(workers)
    try:
        for results in pool.map(lambda task: [work(index) for index in task], tasks):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C and an early end do not wait for the rest


def _default_workers(paths: Sequence[Path]) -> int:
    """How many threads are worth using, judged by the sizes of some of the files.

    Pillow decodes without the GIL but needs it briefly for every image, and with small images that
    is most of the work.
    """
    sizes = []
    for path in paths[:: max(1, len(paths) // 32)]:
        with suppress(OSError, ValueError):  # `decode` reports files that cannot be read
            sizes.append(path.stat().st_size)
    small = bool(sizes) and statistics.median(sizes) < MIN_BYTES_FOR_THREADS
    return 1 if small else min(os.cpu_count() or 1, MAX_WORKERS)


def _first(faults: Sequence[Fault]) -> str:
    more = len(faults) - FAULTS_SHOWN
    return ", ".join(map(str, faults[:FAULTS_SHOWN])) + (f" and {more} more" if more > 0 else "")
