"""The forget set of prepared inputs: shifted copies and mirrored images included."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pbu_cli.data.augmentation import recognised_mirrored, shifted
from pbu_cli.data.preprocessing import batches, normalise
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.models.frozen_backbone import bytes_held, extract
from pbu_cli.models.kernel_cropping import cropped, find_crops
from pbu_cli.runtime.device import affordable
from pbu_cli.settings import Schedule
from pbu_cli.unlearning.forget_set import ForgetSet


@dataclass(frozen=True)
class Mirrored:
    """What the network made of mirror images: how many it recognised for each image that it did,
    of some; whether they joined; how many it was shown in all."""

    recognised: float
    joined: bool
    images: int


def forget_set(prepared: UnlearningInputs, schedule: Schedule) -> tuple[ForgetSet, Mirrored | None]:
    """The case's images; of a few, shifted copies too, so that they fill the window; and the mirror
    images of all of them, where memory holds what the trunk makes of both and the network takes
    those for the class as well."""
    pixels, labels, device = prepared.images.pixels, prepared.image_labels, prepared.loaded.device
    features, answers = prepared.features, prepared.answers
    copies = copies_of_each(prepared, schedule)
    if copies > 1:
        pixels = shifted(pixels, copies, schedule.seed)
        labels = labels.repeat(copies)
        features, answers = _look(prepared, pixels)
    images = ForgetSet(
        pixels if features is not None else pixels.to(device),
        labels.to(device), prepared.forgotten, prepared.preprocessing, answers, features,
    )  # fmt: skip
    count, split_point = len(images), prepared.split_point
    if (
        not schedule.mirror
        or split_point is None
        or not affordable(bytes_held(split_point, 2 * count), device)
    ):
        return images, None
    some = torch.linspace(0, count - 1, min(schedule.window, count)).long()
    found = _look(prepared, pixels[some].flip(3))[1]
    there = some.to(device)
    share = recognised_mirrored(answers[there], found, images.labels[there])
    if share < schedule.mirror:
        return images, Mirrored(share, False, len(some))
    features, answers = _look(prepared, pixels.flip(3))
    assert features is not None
    return images.with_mirrored(features, answers), Mirrored(share, True, len(some) + count)


def _look(prepared: UnlearningInputs, pixels: Tensor) -> tuple[Tensor | None, Tensor]:
    """What the frozen trunk makes of images, uint8, and theta*'s logits on them."""
    module, device = prepared.loaded.network.module, prepared.loaded.device
    unused = torch.zeros(len(pixels), dtype=torch.int8)
    rounds = batches(pixels, unused, prepared.preprocessing, prepared.batch_size, device)
    with cropped(
        module, find_crops(module, normalise(pixels[:2].to(device), prepared.preprocessing))
    ):
        return extract(module, prepared.split_point, (inputs for inputs, _ in rounds))


def copies_of_each(prepared: UnlearningInputs, schedule: Schedule) -> int:
    """How often each image is taken: so often that they fill the window, if memory holds so many,
    twice over while they are put together."""
    pixels, device = prepared.images.pixels, prepared.loaded.device
    once = pixels.nbytes + (
        0 if prepared.split_point is None else bytes_held(prepared.split_point, len(pixels))
    )
    copies = -(-schedule.window // len(pixels))
    while copies > 1 and not affordable(2 * copies * once, device):
        copies //= 2
    return copies
