"""The forget images as the loop uses them, together with copies and synthetic forget inputs.

A class is more than the images that are given of it: if only those are forgotten, the class comes
back on other images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pbu_cli.data.preprocessing import normalise
from pbu_cli.settings import Preprocessing, Schedule


@dataclass(frozen=True)
class ForgetSet:
    """The inputs to forget and what theta* predicts for them, all on the model's device.

    pixels: uint8 [n, channels, height, width]. labels: int64 [n]. forgotten: bool [c], true for
    the classes to forget. logits: theta*'s logits [n, c], or other logits that the stability term
    has to preserve. features: what the model takes in place of pixels, such as the features of the
    frozen backbone (`frozen_backbone.from_features`), [n, *shape]. With features there may be more
    inputs than pixels, because inputs that join the images have no pixels.
    """

    pixels: Tensor
    labels: Tensor
    forgotten: Tensor
    preprocessing: Preprocessing
    logits: Tensor
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, index: Tensor) -> Tensor:
        """The inputs at `index`, int64 [k], as the model takes them, [k, *shape]."""
        if self.features is not None:
            return self.features[index]
        return normalise(self.pixels[index], self.preprocessing)

    def joined(self, inputs: Tensor, logits: Tensor) -> ForgetSet:
        """This set followed by more inputs [k, *shape] of the forgotten classes, with theta*'s
        logits on them, [k, c]."""
        own = self.features
        if own is None:
            own = self.inputs(torch.arange(len(self), device=self.labels.device))
        labels = logits.masked_fill(~self.forgotten, -math.inf).argmax(dim=1)
        return replace(
            self,
            labels=torch.cat([self.labels, labels]),
            logits=torch.cat([self.logits, logits]),
            features=torch.cat([own, inputs]),
        )

    def with_mirrored(self, features: Tensor, logits: Tensor) -> ForgetSet:
        """This set followed by its mirrored images, given by the frozen backbone's features
        [n, *shape] and theta*'s logits [n, c] on them.

        The stability term preserves the mean of the two logits, for an image and for its mirrored
        image. Two networks that were trained alike agree more on this mean than on the logits of
        either image.
        """
        assert self.features is not None
        mean = (self.logits + logits) / 2
        return replace(
            self,
            labels=self.labels.repeat(2),
            logits=mean.repeat(2, 1),
            features=torch.cat([self.features, features]),
        )


def shuffled_batches(count: int, schedule: Schedule, device: torch.device) -> Iterator[Tensor]:
    """`schedule.steps` batches of indices into `count` inputs, each epoch in a new order.

    The order is drawn on the CPU, so that it is the same on every device.
    """
    generator = torch.Generator().manual_seed(schedule.seed)
    size = min(schedule.batch_size, count)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(schedule.steps):
        if len(order) < size:
            order = torch.randperm(count, generator=generator).to(device)
        yield order[:size]
        order = order[size:]
