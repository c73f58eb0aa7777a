"""Infer the normalisation that a network was trained with, from the forget images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pbu_cli.data.label_inference import majority
from pbu_cli.data.preprocessing import input_batches
from pbu_cli.models.hooks import first_argument, forward_hooks
from pbu_cli.models.inference import predict
from pbu_cli.settings import NORMALISATIONS, Preprocessing

FIRST_SAMPLE = 64  # images that every normalisation is scored on
SECOND_SAMPLE = 256  # images that the close ones are scored on again
# A normalisation is close if its score is at most this many points behind the best one. With 64
# images the standard error of a difference of two shares is at most 9 points, so this is more than
# three standard errors.
CLOSE_POINTS = 30.0
POINTS_PER_NAT = 50  # percentage points of recognition that one nat of mismatch outweighs


@dataclass(frozen=True)
class NormalisationScore:
    """A normalisation, and how well the network and the images fit together under it.

    recognised: percent of the images predicted as their label, or as the most frequent prediction
    of their folder where no label is known. mismatch: between the running statistics of the first
    BatchNorm and the images, in nats; 0 for a network without BatchNorm.
    """

    name: str
    preprocessing: Preprocessing
    recognised: float
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
    each folder. Recognition alone is misleading: raw 0-255 pixels saturate some networks until they
    predict the same class for every image. So the mismatch with the first BatchNorm counts too.

    All normalisations are scored on FIRST_SAMPLE images. Those within CLOSE_POINTS of the best one
    are then scored on SECOND_SAMPLE images. If only the best one is that close, or if there are no
    more images, the first scores are returned.
    """

    def ranked(names: Iterable[str], count: int) -> list[NormalisationScore]:
        index = torch.linspace(0, len(pixels) - 1, min(len(pixels), count)).round().long()
        sample, owners = pixels[index], groups[index]
        found = [_score(model, sample, owners, labels, name, batch_size) for name in names]
        return sorted(found, key=lambda candidate: -candidate.score)

    first = ranked(NORMALISATIONS, FIRST_SAMPLE)
    close = [c.name for c in first if c.score >= first[0].score - CLOSE_POINTS]
    again = close if len(close) > 1 and len(pixels) > FIRST_SAMPLE else []
    return ranked(again, SECOND_SAMPLE) + [c for c in first if c.name not in again]


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
    layer = _first_batch_norm(model)
    device = next(model.parameters()).device
    with _capture_moments(layer) as moments:
        found = predict(
            model,
            input_batches(pixels, preprocessing, batch_size, device),
            captured={"moments": moments},
        )
    mismatch = _mismatch(layer, found.captured.get("moments"))
    predictions = found.logits.argmax(dim=1).cpu()
    right = 0
    for group, label in enumerate(labels):
        predicted = predictions[groups == group]
        if len(predicted):
            expected = majority(predicted) if label is None else label
            right += int((predicted == expected).sum())
    recognised = 100 * right / len(predictions)
    return NormalisationScore(name, preprocessing, recognised, mismatch)


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """The three numbers for RGB; their mean, once for each channel, for other images."""
    if channels == 3:
        return tuple(values)
    return (round(sum(values) / len(values), 6),) * channels


def _first_batch_norm(model: nn.Module) -> _BatchNorm | None:
    """The model's first BatchNorm that has running statistics."""
    layers = (m for m in model.modules() if isinstance(m, _BatchNorm))
    return next((m for m in layers if m.running_mean is not None), None)


@contextmanager
def _capture_moments(layer: _BatchNorm | None) -> Iterator[list[Tensor]]:
    """A list that receives, on every call of the layer, the moments of its input x.

    float64 [1, 3, channels]: the number of values in a channel, and the sums of x and of x^2.
    """
    captured: list[Tensor] = []

    def capture(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = first_argument(args, kwargs).transpose(0, 1).flatten(1)  # channels first
        # Sums in float32 are too coarse to be subtracted later. MPS has no float64.
        mean, var = (t.cpu().double() for t in (x.mean(1), x.var(1, correction=0)))
        moments = torch.stack([torch.ones_like(mean), mean, var + mean**2])
        captured.append(x.shape[1] * moments[None])

    with forward_hooks(inputs=[] if layer is None else [(layer, capture)]):
        yield captured


def _mismatch(layer: _BatchNorm | None, moments: Tensor | None) -> float:
    """KL divergence of the inputs from the layer's running statistics, in nats a channel.

    Both are taken as Gaussians, with mean m and variance v of the inputs, and M and V of the
    layer: 1/2 ((v + (m - M)^2) / V - 1 - log(v / V)), averaged over channels. moments: from
    `_capture_moments`, [calls, 3, channels]. 0 without a layer or inputs.
    """
    if layer is None or moments is None:
        return 0.0
    running = (layer.running_mean, layer.running_var)
    expected, scale = (t.cpu().double() for t in running if t is not None)
    scale = scale.clamp_min(1e-12)
    sums = torch.zeros(())
    for of_call in moments:
        sums = sums + of_call
    mean, square = sums[1:] / sums[0]
    var = (square - mean**2).clamp_min(1e-12)
    ratio = (var + (mean - expected) ** 2) / scale
    return 0.5 * float((ratio - 1 - (var / scale).log()).mean())
