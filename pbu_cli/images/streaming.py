"""Groups of image files -> batches of uint8 pixels, of which only one is in memory at a time.

The pixels are those of `decode`, and so are the errors. `decode` holds all images at once, which
50,000 images of 224x224 pixels make impossible on most machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pbu_cli.images.decoding import check_faults, decode_into, mode_of, remarkable
from pbu_cli.images.image_faults import Fault
from pbu_cli.images.image_files import Fit, Pixels, Size, decode_image, fit_centre
from pbu_cli.images.image_folders import Group
from pbu_cli.images.worker_threads import default_workers


@dataclass(frozen=True)
class FilesRead:
    """What there is to say of the files of a stream; the fields are those of `DecodedImages`."""

    bad: tuple[Fault, ...] = ()
    animated: tuple[Path, ...] = ()
    misnamed: tuple[Path, ...] = ()


class ImageStream:
    """The images of `groups`, decoded batch by batch; the parameters are those of `decode`.

    `files` is complete once all batches were taken.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        channels: int,
        size: Size,
        skip_bad: bool = False,
        exif_rotation: bool = True,
        fit: Fit = fit_centre,
    ) -> None:
        self.paths = [path for group in groups for path in group.paths]
        self._groups, self._skip_bad = groups, skip_bad
        self._shape, mode = (channels, *size), mode_of(channels)
        self._workers = default_workers(self.paths)
        self._bad: list[Fault] = []
        self._animated: list[Path] = []
        self._misnamed: list[Path] = []

        def read(path: Path) -> Pixels:
            return decode_image(path, mode, size, fit, exif_rotation=exif_rotation)

        self._read = read

    @property
    def files(self) -> FilesRead:
        return FilesRead(tuple(self._bad), tuple(self._animated), tuple(self._misnamed))

    def batches(
        self, size: int, progress: Callable[[int], None] = lambda count: None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of `size` images in order, the last one smaller: uint8 [size, c, h, w], and the
        index of each image among `paths`, int64 [size].

        An unreadable image is in no batch, so that the batches are those of `decode(...).pixels`
        split by `size`. progress: called with the number of files done so far.

        Raises ImageError where `decode` does. Without `skip_bad` no batch follows an unreadable
        image, but all files are read, so that the message counts all faults.
        """
        pixels, index = torch.empty((0, *self._shape), dtype=torch.uint8), torch.empty(0).long()
        for start in range(0, len(self.paths), size):
            more, more_index = self._decoded(range(start, min(start + size, len(self.paths))))
            progress(start + size if start + size < len(self.paths) else len(self.paths))
            if self._bad and not self._skip_bad:
                continue
            if len(pixels):
                more, more_index = torch.cat([pixels, more]), torch.cat([index, more_index])
            if len(more) >= size:
                yield more[:size], more_index[:size]
                more, more_index = more[size:], more_index[size:]
            pixels, index = more, more_index
        check_faults(self._groups, len(self.paths), self._bad, self._skip_bad)
        if len(pixels):
            yield pixels, index

    def _decoded(self, chosen: range) -> tuple[Tensor, Tensor]:
        """Those of the files with these indices that can be read, and their indices."""
        paths = [self.paths[k] for k in chosen]
        pixels = torch.empty((len(paths), *self._shape), dtype=torch.uint8)
        faults = decode_into(pixels, paths, self._read, self._workers)
        index = torch.tensor(chosen, dtype=torch.int64)
        if faults:
            good = [k for k in range(len(paths)) if k not in faults]
            self._bad += faults.values()
            pixels, index = pixels[good], index[good]
            paths = [paths[k] for k in good]
        animated, misnamed = remarkable(paths)
        self._animated += animated
        self._misnamed += misnamed
        return pixels, index
