"""MNIST: four files in the IDX format."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pbu_cli.benchmark.archives import Splits
from pbu_cli.errors import ImageError, printable
from pbu_cli.io.regular_files import read_whole

MAX_BYTES = 1 << 27  # of a file; the published ones have at most 47 MB
UNSIGNED_BYTE = 8  # the IDX format's number of uint8


def read(root: Path) -> Splits:
    """Raises OSError where a file cannot be read, and ImageError where it is not in the format."""
    splits = []
    for which in ("train", "t10k"):
        images = root / "MNIST" / "raw" / f"{which}-images-idx3-ubyte"
        pixels = _idx(images, 3)
        labels = _idx(images.with_name(f"{which}-labels-idx1-ubyte"), 1)
        if len(pixels) != len(labels) or int(labels.max()) > 9:
            raise ImageError(
                f"{printable(images)}: {len(pixels)} images for {len(labels)} labels up to"
                f" {int(labels.max())}; expected a label from 0 to 9 for each: fetch MNIST again"
            )
        splits.append((pixels.unsqueeze(1), labels.long()))
    return tuple(map(str, range(10))), splits


def _idx(path: Path, dimensions: int) -> Tensor:
    """The numbers of an IDX file: uint8, in so many dimensions, none of them empty.

    Source: Y. LeCun, C. Cortes, C. Burges, the MNIST database, file formats.
    """
    data = read_whole(path, MAX_BYTES)
    start = 4 + 4 * dimensions
    shape = struct.unpack_from(f">{dimensions}I", data, 4) if len(data) > start else (0,)
    header = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if not data.startswith(header) or not 0 < math.prod(shape) == len(data) - start:
        raise ImageError(
            f"{printable(path)}: not an IDX file of bytes in {dimensions} dimensions; expected the"
            " published one, unpacked: fetch MNIST again"
        )
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).copy()).reshape(shape)
