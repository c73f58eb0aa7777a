"""The forget images as the loop sees them, and copies of them: a class is more than the images
given of it, and what is forgotten on those alone comes back on others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pbu_cli.data.preprocessing import normalise
from pbu_cli.settings import Preprocessing


@dataclass(frozen=True)
class ForgetSet:
    """The forget images as the loop sees them.

    pixels: uint8 [n, channels, height, width], labels: int64 [n], forgotten: bool [c], true for
    the classes to forget, answers: theta*'s logits [n, c], or what else stability is to hold on
    to; all on the model's device. features:
    what the model is to take instead of pixels, such as what the frozen trunk makes of them
    (`trunk.beyond`): of those beside the images themselves, there are no pixels.
    """

    pixels: Tensor
    labels: Tensor
    forgotten: Tensor
    preprocessing: Preprocessing
    answers: Tensor
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, index: Tensor) -> Tensor:
        if self.features is not None:
            return self.features[index]
        return normalise(self.pixels[index], self.preprocessing)

    def joined(self, inputs: Tensor, answers: Tensor) -> ForgetSet:
        """With more inputs of the forgotten classes, and theta*'s logits on them."""
        own = self.features
        if own is None:
            own = self.inputs(torch.arange(len(self), device=self.labels.device))
        likeliest = answers.masked_fill(~self.forgotten, -math.inf).argmax(dim=1)
        return replace(
            self,
            labels=torch.cat([self.labels, likeliest]),
            answers=torch.cat([self.answers, answers]),
            features=torch.cat([own, inputs]),
        )

    def with_mirrored(self, features: Tensor, answers: Tensor) -> ForgetSet:
        """With the mirror images, of which the trunk makes `features` [n, *shape], as it has of
        the images, and theta*'s logits are `answers` [n, c]. What stability holds on to is the mean
        of the two, for both: two networks trained alike agree more on it than on the answers to
        either.
        """
        assert self.features is not None
        mean = (self.answers + answers) / 2
        return replace(
            self,
            labels=self.labels.repeat(2),
            answers=mean.repeat(2, 1),
            features=torch.cat([self.features, features]),
        )
