"""Infer the normalisation that a network was trained with, from the forget images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from pbu_cli.data.batchnorm_fit import batch_norms, capture_moments, mismatch
from pbu_cli.data.label_inference import majority
from pbu_cli.data.preprocessing import input_batches
from pbu_cli.models.inference import predict
from pbu_cli.settings import Preprocessing

# The usual normalisations, tried in this order. Raw 0-255 is mean 0 and std 1/255.
NORMALISATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "MNIST": ((0.1307, 0.1307, 0.1307), (0.3081, 0.3081, 0.3081)),
    "0.5/0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit range": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "raw 0-255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}

FIRST_SAMPLE = 64  # images that every normalisation is scored on
SECOND_SAMPLE = 256  # images that the close ones are scored on again
# A normalisation is close if its score is at most this many points behind the best one. With 64
# images the standard error of a difference of two shares is at most 9 points, so this is more than
# three standard errors.
CLOSE_POINTS = 30.0
POINTS_PER_NAT = 50  # percentage points of recognition that one nat of mismatch outweighs
# Normalisations whose mismatch is at most this many nats above the least one fit the network. On
# training images of single classes of four networks the right one is at most 0.03 above it, and one
# that is not a close relative of the right one at least 0.11.
FITTING = 0.1
MUCH_BETTER = 20.0  # percentage points by which another class is recognised better


@dataclass(frozen=True)
class NormalisationScore:
    """A normalisation, and how well the network and the images fit together under it.

    recognised: percent of the images predicted as their label, or as the most frequent prediction
    of their folder where no label is known. agreeing: percent of the images predicted as the most
    frequent prediction of their folder. mismatch: between the running statistics of the first
    BatchNorm and the images, in nats; 0 for a network without BatchNorm.
    """

    name: str
    preprocessing: Preprocessing
    recognised: float
    agreeing: float
    mismatch: float

    @property
    def score(self) -> float:
        return self.recognised - POINTS_PER_NAT * self.mismatch


def rank_normalisations(
    model: nn.Module,
    pixels: Tensor,
    groups: Tensor,
    labels: Sequence[int | None],
    batch_size: int = SECOND_SAMPLE,
) -> list[NormalisationScore]:
    """The usual normalisations, best first, scored on at most SECOND_SAMPLE of the images.

    pixels uint8 [n, k, h, w]; groups int64 [n], the index of each image's folder; labels: one for
    each folder. Recognition is misleading: raw 0-255 pixels saturate some networks until they
    predict the same class for every image, and under a wrong normalisation a network may predict
    the class that a wrongly named folder claims. So the mismatch with the first BatchNorm decides
    which normalisations fit, and only among those does the score decide.

    All normalisations are scored on FIRST_SAMPLE images. Those that fit and are within CLOSE_POINTS
    of the best one are then scored on SECOND_SAMPLE images. If only the best one is that close, or
    if there are no more images, the first scores are returned.
    """

    def scored(names: Iterable[str], count: int) -> list[NormalisationScore]:
        index = torch.linspace(0, len(pixels) - 1, min(len(pixels), count)).round().long()
        sample, owners = pixels[index], groups[index]
        return [_score(model, sample, owners, labels, name, batch_size) for name in names]

    first = scored(NORMALISATIONS, FIRST_SAMPLE)
    limit = min(candidate.mismatch for candidate in first) + FITTING

    def rank(candidate: NormalisationScore) -> tuple[bool, float]:
        return candidate.mismatch > limit, -candidate.score

    first.sort(key=rank)
    least = first[0].score - CLOSE_POINTS
    close = [c.name for c in first if c.mismatch <= limit and c.score >= least]
    again = close if len(close) > 1 and len(pixels) > FIRST_SAMPLE else []
    second = sorted(scored(again, SECOND_SAMPLE), key=rank)
    return second + [candidate for candidate in first if candidate.name not in again]


def _score(
    model: nn.Module,
    pixels: Tensor,
    groups: Tensor,
    labels: Sequence[int | None],
    name: str,
    batch_size: int,
) -> NormalisationScore:
    """The score of the normalisation called `name` on all of these images."""
    mean, std = (_per_channel(values, pixels.shape[1]) for values in NORMALISATIONS[name])
    preprocessing = Preprocessing((pixels.shape[2], pixels.shape[3]), mean, std)
    first = dict(islice(batch_norms(model).items(), 1))
    device = next(model.parameters()).device
    batches = input_batches(pixels, preprocessing, batch_size, device)
    with capture_moments(first) as moments:
        found = predict(model, batches, captured=moments)
    distance = sum(mismatch(first[layer], found.captured[layer]) for layer in found.captured)
    predictions = found.logits.argmax(dim=1).cpu()
    right = agreeing = 0
    for group, label in enumerate(labels):
        predicted = predictions[groups == group]
        if len(predicted):
            commonest = int((predicted == majority(predicted)).sum())
            agreeing += commonest
            right += commonest if label is None else int((predicted == label).sum())
    recognised, common = (100 * count / len(predictions) for count in (right, agreeing))
    return NormalisationScore(name, preprocessing, recognised, common, distance)


def better_without_labels(ranking: Sequence[NormalisationScore]) -> NormalisationScore | None:
    """A normalisation under which the network is far surer of other classes than the labels say.

    The labels have chosen the first of `ranking`. Where a folder has a wrong name, that choice
    makes the name true: another normalisation then recognises another class much better. None
    where there is no such normalisation. Raw 0-255 does not count, because it makes some networks
    predict one class for every image.
    """
    chosen = ranking[0]
    others = [
        other
        for other in ranking[1:]
        if other.name != "raw 0-255"
        and other.mismatch <= chosen.mismatch + FITTING
        and other.agreeing >= chosen.recognised + MUCH_BETTER
        and other.agreeing > other.recognised
    ]
    return max(others, key=lambda other: other.agreeing, default=None)


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """The three numbers for RGB; their mean, once for each channel, for other images."""
    if channels == 3:
        return tuple(values)
    return (round(sum(values) / len(values), 6),) * channels
