"""Folders and lists of images -> uint8 pixels in a fixed order.

The order is that of the paths' bytes, so neither the file system nor the order of a list matters.
PNG, JPEG, WebP, BMP and TIFF, told apart by content; of several frames or pages the first. Pixels
come out as training pipelines have them (`convert("RGB")` of torchvision's ImageFolder and timm):
alpha is dropped, not composited; grey is repeated, colour becomes luma; EXIF rotation is applied.

What is in a folder is not trusted: only regular files are opened, links to folders are not
followed, sizes are bounded before anything is decoded.
"""

from __future__ import annotations

import logging
import math
import os
import stat
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
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

from pbu_cli.errors import ImageError, InvalidUsage, printable

Size = tuple[int, int]  # height, width
Result = TypeVar("Result")

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff"}
EXPECTED = "PNG, JPEG, WebP, BMP or TIFF images"
# Made by file managers, unasked; the last two hold thumbnails or doubles of the images.
CLUTTER = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height

MOST_PIXELS = 100_000_000  # an image; Pillow holds up to 4 bytes for each
MOST_BYTES = 1 << 30  # a file; some of Pillow's readers take it in whole
MOST_WORKERS = 16
MOST_AT_ONCE = 32  # images a task: a 28x28 PNG is decoded faster than a task is handed out
FAULTS_SHOWN = 3

SMALL = 96  # pixels; networks for images up to this size are trained without a margin ...
BLEED = 1 / 16  # ... larger ones on the inner 224 of 256: 1/16 off on every side


@dataclass(frozen=True)
class Group:
    """Images that share a label: those of one --forget source, or of one of its subfolders.

    name: the folder's, evidence of the label; empty for a list on stdin. paths: absolute, in the
    fixed order. root: the folder itself, None for a list. ignored: files that are no images by
    their suffix, links to folders, FIFOs and the like.
    """

    name: str
    paths: tuple[Path, ...]
    root: Path | None = None
    ignored: tuple[Path, ...] = ()


def list_groups(sources: Sequence[str], stdin: BinaryIO | None = None) -> tuple[Group, ...]:
    """One group for each source: a folder, nested or not, or `-` for one path a line on stdin
    (or paths ended by NUL, as `find -print0` writes them).

    Raises ImageError where a source cannot be listed, holds no image, or shares one with another.
    """
    if "-" in sources and (stdin is None or list(sources).count("-") > 1):
        raise InvalidUsage("- stands for the paths on stdin; expected once, with stdin open")
    groups = tuple(_listed(stdin) if s == "-" and stdin else _folder(s) for s in sources)
    first: dict[Path, int] = {}
    for number, group in enumerate(groups):
        for path in group.paths:
            if first.setdefault(path, number) != number:
                raise ImageError(
                    f"{printable(path)}: in {printable(sources[first[path]])} and in"
                    f" {printable(sources[number])}; expected each image in one of them"
                )
    return groups


def split_by_subfolder(group: Group) -> tuple[Group, ...]:
    """The first-level subfolders as groups, by name; the group alone unless every image is in one.

    A subfolder without images gives no group; what it holds is in `ignored` of the whole.
    """
    root = group.root
    if root is None or any(path.parent == root for path in group.paths):
        return (group,)

    def below(paths: Sequence[Path]) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in paths:
            found.setdefault(path.relative_to(root).parts[0], []).append(path)
        return found

    images, ignored = below(group.paths), below(group.ignored)
    return tuple(
        Group(name, tuple(images[name]), root / name, tuple(ignored.get(name, ())))
        for name in sorted(images, key=os.fsencode)
    )


def _folder(source: str) -> Group:
    """The images anywhere below a folder. Links to files count as files of their own."""
    expected = "expected a folder of images, or - for one path a line on stdin"
    if not source:  # an unset variable of the shell; realpath would take it for this folder
        raise ImageError(f"the folder's name is empty; {expected}")
    root = Path(os.path.realpath(source))
    images: list[Path] = []
    ignored: list[Path] = []
    folders = [root]
    for folder in folders:  # grows as it goes
        try:
            with os.scandir(folder) as listing:
                entries = [entry for entry in listing if not _is_clutter(entry.name)]
        except OSError as error:
            raise ImageError(f"{printable(folder)}: {error.strerror}; {expected}") from None
        for entry in entries:
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif _is_image(path) and (entry.is_symlink() or entry.is_file(follow_symlinks=False)):
                images.append(path)  # a dangling link is a fault to report, not to pass over
            else:
                ignored.append(path)
    name = Path(source).name
    return _group(root.name if name in ("", "..") else name, images, root, ignored)


def _listed(stdin: BinaryIO) -> Group:
    """The images whose paths stdin lists; each path once."""
    data = stdin.read()
    lines = data.split(b"\0") if b"\0" in data else data.split(b"\n")
    paths: set[Path] = set()
    real: dict[Path, Path] = {}  # one look-up a folder, not one a file
    for line in lines:
        path = Path(os.fsdecode(line.removesuffix(b"\r")))
        if path.name and not _is_clutter(path.name):
            folder = path.parent
            if folder not in real:
                real[folder] = Path(os.path.realpath(folder))
            paths.add(real[folder] / path.name)
    images = {path for path in paths if _is_image(path)}
    return _group("", images, None, paths - images)


def _group(name: str, images: Iterable[Path], root: Path | None, ignored: Iterable[Path]) -> Group:
    """The group in its fixed order; ImageError if there is no image in it."""
    paths, others = (tuple(sorted(some, key=os.fsencode)) for some in (images, ignored))
    if not paths:
        found = (
            f"nothing but {len(others)} other files, first {others[0].name}" if others else "empty"
        )
        raise ImageError(
            f"{printable(root or 'stdin')}: {printable(found)}; expected {EXPECTED}, named"
            " .png, .jpg and so on"
        )
    return Group(name, paths, root, others)


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in CLUTTER


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


class Fault(NamedTuple):
    """An image that cannot be used, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.path, 200)} ({self.reason})"


@dataclass(frozen=True)
class Images:
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
) -> Images:
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
            view[index] = _pixels(paths[index], MODES[channels], (height, width))
        except Exception as error:  # on hostile content Pillow raises nearly anything
            return Fault(paths[index], _reason(error))
        return None

    faults: dict[int, Fault] = {}
    with _quiet_pillow():
        for index, fault in enumerate(_in_parallel(read, len(paths), workers)):
            if fault is not None:
                faults[index] = fault
            if progress is not None:
                progress(index + 1)

    bad = tuple(faults.values())
    if bad and not skip_bad:
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
    return Images(pixels[: len(good)], owners[good], bad)


def _pixels(path: Path, mode: str, size: Size) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode one image to uint8 [channels, *size]."""
    height, width = size
    with _opened(path) as file:
        file.load()
        with suppress(Exception):  # EXIF that makes no sense turns nothing; the pixels are fine
            ImageOps.exif_transpose(file, in_place=True)
        image = _in_eight_bits(file).convert(mode)
    if image.size != (width, height):
        bleed = BLEED if max(size) > SMALL else 0.0
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR, bleed)
    return np.asarray(image).reshape(height, width, -1).transpose(2, 0, 1)


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8, where Pillow's own conversion clips; other modes as they are."""
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a sample; expected 8 or 16")
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """The image with its header read and found harmless. Raises whatever Pillow does."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if status.st_size > MOST_BYTES:
        raise ValueError(f"{status.st_size:,} bytes; expected at most {MOST_BYTES:,}")
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise ValueError(f"{width}x{height} pixels; expected at most {MOST_PIXELS:,} in all")
        yield image


def _header_size(path: Path) -> Size | None:
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


def _two_sizes(groups: Sequence[Group], workers: int | None) -> dict[Size, Path]:
    """The first two sizes found, each with its first image; fewer if there are fewer."""
    paths = [path for group in groups for path in group.paths]
    sizes: dict[Size, Path] = {}
    with (
        _quiet_pillow(),
        closing(
            _in_parallel(lambda index: _header_size(paths[index]), len(paths), workers)
        ) as found,
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
    limits = []
    with suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # no cgroup v2, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    need = math.prod(shape)
    if limits and need > min(limits):
        number, channels, height, width = shape
        raise ImageError(
            f"{number} images of {channels}x{height}x{width} need {need / 1e9:.0f} GB of memory;"
            f" expected at most {min(limits) / 1e9:.0f} GB: pass a smaller --size or fewer images"
        )


def _in_parallel(
    work: Callable[[int], Result], count: int, workers: int | None
) -> Generator[Result, None, None]:
    """work(0), work(1), ... in this order, by threads: Pillow decodes without the GIL."""
    workers = workers or min(os.cpu_count() or 1, MOST_WORKERS)
    step = max(1, min(MOST_AT_ONCE, count // (4 * workers)))
    tasks = [range(start, min(start + step, count)) for start in range(0, count, step)]
    pool = ThreadPoolExecutor(workers)
    try:
        for results in pool.map(lambda task: [work(index) for index in task], tasks):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)  # neither Ctrl-C nor an early end waits for the rest


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Keep Pillow's warnings and log lines off the terminal: what matters of them is raised."""
    logger, silent = logging.getLogger("PIL"), logging.NullHandler()
    logger.addHandler(silent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(silent)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not PNG, JPEG, WebP, BMP or TIFF"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(str(error) or type(error).__name__, 100)


def _first(faults: Sequence[Fault]) -> str:
    more = len(faults) - FAULTS_SHOWN
    return ", ".join(map(str, faults[:FAULTS_SHOWN])) + (f" and {more} more" if more > 0 else "")
