"""Fit a network and its images to each other: the normalisation, and the max-pool of a small stem.

How well both fit is judged by the running statistics of the network's BatchNorm layers. They also
show where the images were prepared in another way than in the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pbu_cli.data.batchnorm_fit import median_mismatch
from pbu_cli.data.preprocessing import input_batches, normalise
from pbu_cli.images.decoding import DecodedImages
from pbu_cli.inputs.inferred import Inferred
from pbu_cli.inputs.loaded_model import LoadedModel
from pbu_cli.inputs.resolve import resolve_normalisation
from pbu_cli.models.kernels.kernel_cropping import cropped, find_crops
from pbu_cli.models.sources.torchvision_build import set_stem_pool
from pbu_cli.settings import SMALL_IMAGE, InputOptions, Preprocessing

SAMPLE = 64  # images that the fit is judged by
# The median mismatch in nats above which images do not fit. Single classes of the training images
# of four networks are at .01 to .06 (digit 1 at .11, digit 7 of the demo at .17); twice their size
# they are at .11 to .54. So from DOUBTFUL on it is asked whether another size fits BETTER times as
# well.
MISFIT, DOUBTFUL, BETTER = 0.2, 0.06, 2.0
OTHER_SIZES = (28, 32, 64, 96, 224)
LARGE_SAMPLE = 16  # images that sizes above SMALL_IMAGE are tried on


@dataclass(frozen=True)
class Fitted:
    """How a network takes its images.

    normalisation: and its source. stem: the max-pool of a small stem and its source, None where
    there was nothing to find out. mismatch: the `median_mismatch` of the images. It is None for a
    network without BatchNorm, and where size and normalisation are both stated: some networks are
    trained with statistics of other images, and then the user's word counts. better: another size
    that fits far better, with its mismatch; None where there is none or the size was stated.
    """

    normalisation: Inferred[Preprocessing]
    stem: Inferred[bool] | None
    mismatch: float | None
    better: tuple[int, float] | None = None

    def misfit(self) -> str:
        """Why the images do not fit the network, in words; empty where they do."""
        if self.mismatch is None or (self.mismatch <= MISFIT and self.better is None):
            return ""
        height, width = self.normalisation.value.size
        expected = f"at most {MISFIT:g} expected"
        if self.better is not None:
            side, mismatch = self.better
            expected = f"at {side}x{side} it would be {mismatch:.3f}"
        return (
            f"the images at {height}x{width} do not fit the network's BatchNorm statistics"
            f" (mismatch {self.mismatch:.3f}, {expected})"
        )


def fit(
    loaded: LoadedModel,
    images: DecodedImages,
    labels: Sequence[int | None],
    options: InputOptions,
) -> Fitted:
    """Resolve the normalisation and the max-pool of a small stem, which the module then has.

    labels: the label of each folder as far as it is known before the network has seen an image.
    """
    pixels, module, description = images.pixels, loaded.network.module, loaded.description
    stated = None not in (options.size or description.size, options.mean or description.mean)

    def fitted() -> tuple[Inferred[Preprocessing], float | None]:
        with cropped(module, find_crops(module, pixels[:2].to(loaded.device) / 255)):
            normalisation = resolve_normalisation(loaded, images, labels, options)
            return normalisation, _mismatch(loaded, pixels, normalisation.value, options.batch_size)

    pools: list[bool | None] = [None]
    if loaded.network.small_stem:
        recorded = description.stem_pool
        pools = [False, True] if recorded is None else [recorded]
    found = {}
    for pooled in pools:
        if pooled is not None:
            set_stem_pool(module, pooled)
        found[pooled] = fitted()
    chosen = min(found, key=lambda pooled: found[pooled][1] or 0.0)
    normalisation, mismatch = found[chosen]
    stem = None
    if chosen is not None:
        set_stem_pool(module, chosen)
        source = "metadata written by pbu"
        if len(found) > 1:
            source = f"BatchNorm mismatch {mismatch:.3f}; otherwise {found[not chosen][1]:.3f}"
        text = "3x3, with a max-pool" if chosen else "3x3, without a max-pool"
        stem = Inferred("stem", chosen, source, text)
    if stated or mismatch is None:
        return Fitted(normalisation, stem, None)
    of_user = options.size or description.size or loaded.network.image_size
    better = None
    if of_user is None and mismatch > DOUBTFUL:
        better = _better_size(loaded, pixels, normalisation, mismatch, options.batch_size)
    return Fitted(normalisation, stem, mismatch, better)


def fit_stem(
    loaded: LoadedModel, pixels: Tensor, preprocessing: Preprocessing, batch_size: int
) -> None:
    """Give the module of a small stem its max-pool, where the images fit it better so.

    pixels: uint8 [n, k, h, w].
    """
    if not loaded.network.small_stem:
        return
    pooled, module = loaded.description.stem_pool, loaded.network.module
    if pooled is None:
        found = []
        for choice in (False, True):
            set_stem_pool(module, choice)
            found.append(_mismatch(loaded, pixels, preprocessing, batch_size) or 0.0)
        pooled = found[1] < found[0]
    set_stem_pool(module, pooled)


def _better_size(
    loaded: LoadedModel,
    pixels: Tensor,
    normalisation: Inferred[Preprocessing],
    mismatch: float,
    batch_size: int,
) -> tuple[int, float] | None:
    """The side of square images that fit the network at least BETTER times as well, and how well.

    The images are resized from the size that they were decoded to.
    """
    preprocessing = normalisation.value
    height, width = preprocessing.size
    found = {}
    for side in {*OTHER_SIZES, max(height, width) // 2, 2 * max(height, width)}:
        if (side, side) == preprocessing.size or not 8 <= side <= max(OTHER_SIZES):
            continue
        sample = _sample(pixels, SAMPLE if side <= SMALL_IMAGE else LARGE_SAMPLE)
        resized = F.interpolate(sample.float(), (side, side), mode="bilinear", antialias=True)
        inputs = normalise(resized.to(loaded.device), preprocessing)
        with suppress(RuntimeError):  # too small for the network's layers, or for its one size
            found[side] = median_mismatch(loaded.network.module, inputs.split(batch_size)) or 0.0
    best = min(found, key=lambda side: found[side], default=None)
    if best is None or found[best] * BETTER > mismatch:
        return None
    return best, found[best]


def _sample(pixels: Tensor, count: int) -> Tensor:
    """At most `count` of the images, evenly spread over all."""
    return pixels[torch.linspace(0, len(pixels) - 1, min(len(pixels), count)).round().long()]


def _mismatch(
    loaded: LoadedModel, pixels: Tensor, preprocessing: Preprocessing, batch_size: int
) -> float | None:
    """The median mismatch on at most SAMPLE images."""
    inputs = input_batches(_sample(pixels, SAMPLE), preprocessing, batch_size, loaded.device)
    return median_mismatch(loaded.network.module, inputs)
