"""The size that the images of a run share, from their headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pbu_cli.errors import ImageError, printable
from pbu_cli.images.image_files import Size, header_size, quiet_pillow
from pbu_cli.images.image_folders import Group
from pbu_cli.images.worker_threads import in_parallel

NEARLY_ALL = 0.9  # share of the images whose common size is taken for that of the training images


@dataclass(frozen=True)
class UsualSize:
    """The size (height, width) of nearly all images, and the images that have another one."""

    size: Size
    odd: tuple[Path, ...]
    count: int

    @property
    def shared_by(self) -> str:
        """How many images have the size, in words."""
        return f"{self.count - len(self.odd)} of {self.count}" if self.odd else "all"


def usual_size(
    groups: Sequence[Group], workers: int | None = None, *, exif_rotation: bool = True
) -> UsualSize | None:
    """The size that at least NEARLY_ALL of the images have after EXIF rotation, else None.

    Only headers are read. Images whose header cannot be read are ignored; `decode` reports them.
    """
    paths = [path for group in groups for path in group.paths]
    by_size: dict[Size, list[Path]] = {}
    read = 0

    def size_of(index: int) -> Size | None:
        return header_size(paths[index], exif_rotation=exif_rotation)

    with (
        quiet_pillow(),
        closing(in_parallel(size_of, paths, workers)) as found,
    ):
        for path, size in zip(paths, found, strict=False):
            if size is None:
                continue
            by_size.setdefault(size, []).append(path)
            read += 1
            if read - max(map(len, by_size.values())) > (1 - NEARLY_ALL) * len(paths):
                return None
    if not by_size:
        return None
    usual = max(by_size, key=lambda size: len(by_size[size]))
    odd = [path for size, others in by_size.items() if size != usual for path in others]
    if len(odd) > (1 - NEARLY_ALL) * read:
        return None
    return UsualSize(usual, tuple(odd), read)


def _first_two_sizes(
    groups: Sequence[Group], workers: int | None, exif_rotation: bool
) -> dict[Size, Path]:
    """At most the first two different sizes, each with the first image that has it."""
    paths = [path for group in groups for path in group.paths]
    sizes: dict[Size, Path] = {}

    def size_of(index: int) -> Size | None:
        return header_size(paths[index], exif_rotation=exif_rotation)

    with quiet_pillow(), closing(in_parallel(size_of, paths, workers)) as found:
        for path, size in zip(paths, found, strict=False):
            if size is not None:
                sizes.setdefault(size, path)
            if len(sizes) == 2:
                break
    return sizes


def own_size(groups: Sequence[Group], workers: int | None, exif_rotation: bool) -> Size:
    """The one size of all images. Raises ImageError where they have different sizes."""
    sizes = _first_two_sizes(groups, workers, exif_rotation)
    if len(sizes) > 1:
        first, second = (f"{printable(p, 200)} {h}x{w}" for (h, w), p in sizes.items())
        raise ImageError(
            f"images of different sizes: {first}, {second} (height x width); expected one size, or"
            " --size to resize them to"
        )
    return next(iter(sizes), (1, 1))  # no header can be read: `decode` then names the images
