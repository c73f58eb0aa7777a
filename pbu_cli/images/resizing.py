"""How images of any size become the input of a network, where its description states it.

The functions that resize are torchvision's, which timm's evaluation transform uses as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from PIL import Image

from pbu_cli.errors import printable
from pbu_cli.images.image_files import Size

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
CROP_MODES = ("center", "squash")
LEAST_CROP, MOST_RESIZED = 0.1, 8192  # crop_pct; pixels a side after resizing


class Resizing(Protocol):
    """A way to resize an image of any size to the network's input size."""

    @property
    def size(self) -> Size:
        """(height, width) of every image that was resized."""

    def __call__(self, image: Image.Image, size: Size) -> Image.Image:
        """The image at `size`, which is the same as this way's own."""

    def entry(self) -> dict[str, Any]:
        """The JSON that records have, from which the same way can be made again."""


@dataclass(frozen=True)
class ResizeAndCrop:
    """Resize, then cut out the centre, as the evaluation transforms of timm and torchvision do.

    resized: (height, width) that the resized image has to cover; with `squash` (timm's crop mode of
    this name) it has just this size, and the shape of the image changes. size: (height, width) of
    what is cut out. A smaller image is padded with black, as torchvision's `center_crop` does it.
    """

    resized: Size
    size: Size
    interpolation: str
    squash: bool = False

    def __call__(self, image: Image.Image, size: Size) -> Image.Image:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        height, width = self._target(image)
        if max(height, width) > MOST_RESIZED:
            raise ValueError(f"{image.width}x{image.height} pixels; too oblong for {_by(size)}")
        image = F.resize(image, [height, width], InterpolationMode(self.interpolation))
        found: Image.Image = F.center_crop(image, list(self.size))
        return found

    def entry(self) -> dict[str, Any]:
        return {"kind": "resize and crop", **asdict(self)}

    def __str__(self) -> str:
        to = _by(self.resized) if self.squash else f"to cover {_by(self.resized)}"
        return f"{self.interpolation}, {to}, then the inner {_by(self.size)}"

    def _target(self, image: Image.Image) -> Size:
        """(height, width) of the image after resizing."""
        if self.squash:
            return self.resized
        height, width = self.resized
        if height == width:  # torchvision rounds the longer side down
            shorter = min(image.size)
            return height * image.height // shorter, height * image.width // shorter
        ratio = min(image.height / height, image.width / width)  # timm rounds both
        return round(image.height / ratio), round(image.width / ratio)


def timm_resizing(
    size: Size, crop_pct: float | None, interpolation: str | None, crop_mode: str | None
) -> ResizeAndCrop:
    """The way of timm's `create_transform` for these values of a `pretrained_cfg`.

    Missing values are timm's defaults: 0.875, bicubic and center. Raises ValueError for values
    that pbu does not have.

    >>> print(timm_resizing((224, 224), 0.9, "bicubic", None))
    bicubic, to cover 248x248, then the inner 224x224
    """
    share, mode = crop_pct or 0.875, crop_mode or "center"
    if not LEAST_CROP <= share <= 1:
        raise ValueError(f"crop_pct {share:g}; expected a number from {LEAST_CROP:g} to 1")
    if mode not in CROP_MODES:
        raise ValueError(f"crop_mode {printable(mode, 40)}; expected center or squash")
    chosen = interpolation or "bicubic"
    if chosen == "random":  # timm trains with both and evaluates with this one
        chosen = "bilinear"
    if chosen not in INTERPOLATIONS:
        raise ValueError(f"interpolation {printable(chosen, 40)}; expected one of Pillow's")
    height, width = (math.floor(side / share) for side in size)
    return ResizeAndCrop((height, width), size, chosen, mode == "squash")


def resize_and_crop(entry: Mapping[str, Any]) -> ResizeAndCrop:
    """What `ResizeAndCrop.entry` stands for. Raises ValueError, KeyError or TypeError."""
    resized, size, squash = entry["resized"], entry["size"], entry["squash"]
    sides = [*resized, *size]
    if len(resized) != 2 or len(size) != 2 or type(squash) is not bool:
        raise ValueError("a size is a height and a width in pixels")
    if not all(type(side) is int and 1 <= side <= MOST_RESIZED for side in sides):
        raise ValueError("sizes are whole numbers of pixels")
    if entry["interpolation"] not in INTERPOLATIONS:
        raise ValueError("an interpolation that Pillow does not have")
    resized, size = ((height, width) for height, width in (resized, size))
    return ResizeAndCrop(resized, size, entry["interpolation"], squash)


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
