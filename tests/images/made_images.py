"""Image files and lists of paths that the tests of this folder make."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import torch
from PIL import Image

from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import Group
from pbu_cli.images.image_sizes import usual_size

RANDOM = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.fromarray(noise(4, 4))).save(path, **options)
    return path


def group(*paths: Path) -> Group:
    return Group("", paths)


def read(
    path: Path, channels: int = 3, size: tuple[int, int] | None = None
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One image as uint8 [h, w, c]."""
    images = decode([group(path)], channels=channels, size=size)
    assert images.pixels.dtype == torch.uint8
    return images.pixels[0].permute(1, 2, 0).numpy()


def listing(*paths: Path | str | bytes, end: bytes = b"\n") -> io.BytesIO:
    """A list of paths as on stdin."""
    return io.BytesIO(b"".join(os.fsencode(path) + end for path in paths))


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG written by hand: RGB, with `body` as its uncompressed pixels, whatever their number."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    header = pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def own_size(groups: list[Group], *, exif_rotation: bool = True) -> tuple[int, int] | None:
    """The size that nearly all images have."""
    found = usual_size(groups, exif_rotation=exif_rotation)
    return None if found is None else found.size
