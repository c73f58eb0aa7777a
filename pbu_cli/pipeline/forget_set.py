"""Build the forget set of a run: the images, shifted copies of a few, and mirrored images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pbu_cli.data.augmentation import recognised_mirrored, shifted
from pbu_cli.data.preprocessing import input_batches, normalise
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.models.frozen_backbone import bytes_held, extract
from pbu_cli.models.kernels.kernel_cropping import cropped, find_crops
from pbu_cli.runtime.device import affordable
from pbu_cli.settings import Schedule
from pbu_cli.unlearning.forget_set import ForgetSet


@dataclass(frozen=True)
class Mirrored:
    """Whether mirrored images joined the forget set.

    recognised: the share of mirrored images recognised, relative to the unmirrored ones, on a
    sample. joined: whether all mirrored images joined. images: how many mirrored images the
    network was shown in all.
    """

    recognised: float
    joined: bool
    images: int


def build_forget_set(
    inputs: UnlearningInputs, schedule: Schedule
) -> tuple[ForgetSet, Mirrored | None]:
    """The forget images of a run, and what became of the mirrored ones, None if none was tried.

    A few images are joined by shifted copies, so that together they fill `schedule.window`. The
    mirrored images of all of them join where memory holds the features of both and the network
    recognises the class in them.
    """
    pixels, labels, device = inputs.images.pixels, inputs.image_labels, inputs.loaded.device
    features, logits = inputs.features, inputs.logits
    copies = copies_of_each(inputs, schedule)
    if copies > 1:
        pixels = shifted(pixels, copies, schedule.seed)
        labels = labels.repeat(copies)
        features, logits = _extract(inputs, pixels)
    images = ForgetSet(
        pixels if features is not None else pixels.to(device),
        labels.to(device),
        inputs.forgotten,
        inputs.preprocessing,
        logits,
        features,
    )
    return _with_mirrored(inputs, schedule, images, pixels, logits)


def _with_mirrored(
    inputs: UnlearningInputs, schedule: Schedule, images: ForgetSet, pixels: Tensor, logits: Tensor
) -> tuple[ForgetSet, Mirrored | None]:
    count, split_point, device = len(images), inputs.split_point, inputs.loaded.device
    if not schedule.mirror or split_point is None:
        return images, None
    if not affordable(bytes_held(split_point, 2 * count), device):
        return images, None
    sample = torch.linspace(0, count - 1, min(schedule.window, count)).long()
    mirrored_logits = _extract(inputs, pixels[sample].flip(3))[1]
    there = sample.to(device)
    share = recognised_mirrored(logits[there], mirrored_logits, images.labels[there])
    if share < schedule.mirror:
        return images, Mirrored(share, False, len(sample))
    features, mirrored_logits = _extract(inputs, pixels.flip(3))
    assert features is not None
    return images.with_mirrored(features, mirrored_logits), Mirrored(
        share, True, len(sample) + count
    )


def _extract(inputs: UnlearningInputs, pixels: Tensor) -> tuple[Tensor | None, Tensor]:
    """The frozen backbone's features of uint8 images, and theta*'s logits on them."""
    module, device = inputs.loaded.network.module, inputs.loaded.device
    images = input_batches(pixels, inputs.preprocessing, inputs.batch_size, device)
    some = normalise(pixels[:2].to(device), inputs.preprocessing)
    with cropped(module, find_crops(module, some)):
        return extract(module, inputs.split_point, images)


def copies_of_each(inputs: UnlearningInputs, schedule: Schedule) -> int:
    """How many copies of each image there are, itself included: enough to fill the window.

    Fewer where memory does not hold twice as many: they are held twice while they are joined.
    """
    pixels, split_point = inputs.images.pixels, inputs.split_point
    held = 0 if split_point is None else bytes_held(split_point, len(pixels))
    copies = -(-schedule.window // len(pixels))
    while copies > 1 and not affordable(2 * copies * (pixels.nbytes + held), inputs.loaded.device):
        copies //= 2
    return copies
