"""Groups of image files -> uint8 pixels, in the order of the groups.

PNG, JPEG, WebP, BMP, TIFF, GIF, PPM and AVIF are recognised by their content. Of several frames or
pages only the first is read. The pixels are those of training pipelines (`convert("RGB")` in
torchvision's ImageFolder and in timm): alpha is dropped, not composited; grey is repeated; colour
becomes luma. EXIF rotation is applied unless the caller says otherwise: ImageFolder does not apply
it, timm neither, and people do.

Files are not trusted: only regular files are opened, and sizes are checked before anything is
decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pbu_cli.errors import ImageError, printable
from pbu_cli.images.image_faults import Fault, counted, first_of, reason_of
from pbu_cli.images.image_files import (
    MODES,
    Fit,
    Pixels,
    Size,
    decode_image,
    fit_centre,
    has_frames,
    quiet_pillow,
)
from pbu_cli.images.image_folders import EXPECTED, UNREAD_SUFFIXES, Group
from pbu_cli.images.image_sizes import own_size
from pbu_cli.images.worker_threads import in_parallel
from pbu_cli.runtime.device import memory


@dataclass(frozen=True)
class DecodedImages:
    """Decoded images.

    pixels: uint8 [n, c, h, w]. group: int64 [n], the index of each image's group. bad: the files
    that --skip-bad left out. animated: the GIF files of which only the first frame was read.
    misnamed: files that were read, with the suffix of a format that is not.
    """

    pixels: Tensor
    group: Tensor
    bad: tuple[Fault, ...] = ()
    animated: tuple[Path, ...] = ()
    misnamed: tuple[Path, ...] = ()


def decode(
    groups: Sequence[Group],
    *,
    channels: int,
    size: Size | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    exif_rotation: bool = True,
    fit: Fit = fit_centre,
    progress: Callable[[int], None] | None = None,
) -> DecodedImages:
    """Decode all images to uint8 [n, channels, *size], group after group.

    An image that has this size is not resized. Any other image is resized (bilinear, antialiased,
    aspect ratio kept) to cover the size, and the centre is kept. Above 96 pixels, a margin is cut
    off as in the usual evaluation transform: resize to 256, crop 224. fit: resizes in another way,
    and is asked for images of this size too.
    size None: all images must have one size, which is used. A 16-bit grey value v becomes
    round(v / 257). exif_rotation: turn images as their EXIF data say; Pillow itself turns every
    TIFF. progress: called with the number of images done so far.

    Raises ImageError where an image cannot be read (with `skip_bad`: where no image of a group can
    be), and where all images together exceed the memory. The message counts all faults and names
    the first ones.
    """
    mode = mode_of(channels)
    height, width = size or own_size(groups, workers, exif_rotation)
    paths = [path for group in groups for path in group.paths]
    shape = (len(paths), channels, height, width)
    _check_memory(shape)
    pixels = torch.empty(shape, dtype=torch.uint8)

    def read(path: Path) -> Pixels:
        return decode_image(path, mode, (height, width), fit, exif_rotation=exif_rotation)

    faults = decode_into(pixels, paths, read, workers, progress)
    bad = tuple(faults.values())
    check_faults(groups, len(paths), bad, skip_bad)
    good = [index for index in range(len(paths)) if index not in faults]
    if bad:
        for place, index in enumerate(good):  # in place: memory might not hold a copy
            pixels[place] = pixels[index]
    owners = torch.tensor([k for k, g in enumerate(groups) for _ in g.paths], dtype=torch.int64)
    animated, misnamed = remarkable(paths[index] for index in good)
    return DecodedImages(pixels[: len(good)], owners[good], bad, animated, misnamed)


def mode_of(channels: int) -> str:
    """Pillow's name of an image of so many channels. Raises ImageError where there is none."""
    if channels not in MODES:
        raise ImageError(
            f"{channels} channels asked for; expected 1 (grey), 3 (RGB) or 4 (RGBA): image files do"
            " not hold what this network takes"
        )
    return MODES[channels]


def remarkable(paths: Iterable[Path]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Of files that were read, those that are `animated` and `misnamed` in `DecodedImages`."""
    animated, misnamed = [], []
    for path in paths:
        suffix = path.suffix.lower()
        if suffix == ".gif" and has_frames(path):
            animated.append(path)
        if suffix in UNREAD_SUFFIXES:
            misnamed.append(path)
    return tuple(animated), tuple(misnamed)


def decode_into(
    pixels: Tensor,
    paths: Sequence[Path],
    decode_one: Callable[[Path], Pixels],
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[int, Fault]:
    """Decode each of `paths` into its image of `pixels` [n, c, h, w]; the faults by index."""
    view = pixels.numpy()

    def read(index: int) -> Fault | None:
        try:
            view[index] = decode_one(paths[index])
        except Exception as error:  # on hostile content Pillow raises nearly anything
            return Fault(paths[index], reason_of(error, paths[index]))
        return None

    faults: dict[int, Fault] = {}
    with quiet_pillow():
        for index, fault in enumerate(in_parallel(read, paths, workers)):
            if fault is not None:
                faults[index] = fault
            if progress is not None:
                progress(index + 1)
    return faults


def check_faults(groups: Sequence[Group], count: int, bad: Sequence[Fault], skip_bad: bool) -> None:
    """Raise ImageError if any of `count` images is bad; with `skip_bad`, if all of a group are."""
    if bad and not skip_bad and len(bad) < count:
        raise ImageError(
            f"{len(bad)} of {count} images cannot be read{_kinds(bad)}: {first_of(bad)}; repair or"
            " remove them, or pass --skip-bad to leave them out"
        )
    for group in groups:
        members = set(group.paths)
        inside = [fault for fault in bad if fault.path in members]
        if len(inside) == len(group.paths):
            raise ImageError(
                f"{printable(group.root or group.name or 'stdin')}: none of {len(inside)} images"
                f" can be read{_kinds(inside)}: {first_of(inside)}; expected {EXPECTED}"
            )


def _kinds(faults: Sequence[Fault]) -> str:
    return counted(fault.path for fault in faults)


def _check_memory(shape: tuple[int, ...]) -> None:
    """Raise ImageError if uint8 of this shape exceeds the memory of the machine or container."""
    need = math.prod(shape)
    if need > memory():
        number, channels, height, width = shape
        raise ImageError(
            f"{number} images of {channels}x{height}x{width} need {need / 1e9:.0f} GB of memory;"
            f" expected at most {memory() / 1e9:.0f} GB: pass a smaller --size or fewer images"
        )
