"""The forget images as the loop sees them, and copies of them: a class is more than the images
given of it, and what is forgotten on those alone comes back on others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pbu_cli.logits import normalise
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


def shifted(pixels: Tensor, copies: int, seed: int) -> Tensor:
    """The images, then `copies` - 1 times each of them shifted by up to an eighth of its height
    and width, the edge repeated. uint8 [n, k, h, w] -> [copies n, k, h, w].

    A few images stand for a class better where each is seen at several places.

    >>> shifted(torch.tensor([[[[1, 2]]]], dtype=torch.uint8), 3, seed=0).flatten()
    tensor([1, 2, 1, 2, 1, 2], dtype=torch.uint8)
    """
    n, _, h, w = pixels.shape
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (
        (torch.randint(-(size // 8), size // 8 + 1, (copies, n, 1), generator=generator))
        + torch.arange(size)
        for size in (h, w)
    )
    rows[0], columns[0] = torch.arange(h), torch.arange(w)
    rows, columns = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
    places = (torch.arange(n)[:, None, None], slice(None))
    moved = [
        pixels[(*places, r[:, :, None], c[:, None, :])] for r, c in zip(rows, columns, strict=True)
    ]
    return torch.cat([images.movedim(-1, 1) for images in moved])


def recognised_mirrored(answers: Tensor, mirrored: Tensor, labels: Tensor) -> float:
    """How many mirror images are given their class for each image that is, in the class where that
    is least: about 1 for things that have no left and right, less for digits. Logits [n, c] twice,
    labels [n].

    >>> digits = torch.eye(3)
    >>> recognised_mirrored(digits, digits[[0, 0, 2]], torch.arange(3))
    0.0
    """
    known, still = (
        torch.bincount(labels[found.argmax(dim=1) == labels], minlength=answers.shape[1])
        for found in (answers, mirrored)
    )
    return float((still * (known > 0) / known.clamp(min=1))[labels.unique()].min())
