"""Infer the normalisation that a network was trained with from the forget images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pbu_cli.data.label_inference import majority
from pbu_cli.models.hooks import first_argument
from pbu_cli.models.inference import logits
from pbu_cli.settings import NORMALISATIONS, Preprocessing

FEW = 64  # images every candidate normalisation is tried on first ...
SAMPLE = 256  # ... and those that may still be the best; a difference of shares has ...
CLOSE = 30.0  # ... a standard error of at most 9 points among FEW, so more than three of them
MISMATCH_POINTS = 50  # percentage points of recognition that one nat of mismatch outweighs


@dataclass(frozen=True)
class NormalisationScore:
    """A normalisation and how well the network took to the images under it.

    recognised: percent answered with the label, or with their folder's commonest answer where no
    label is known. mismatch: nats, 0 for networks without BatchNorm.
    """

    name: str
    preprocessing: Preprocessing
    recognised: float
    mismatch: float

    @property
    def score(self) -> float:
        return self.recognised - MISMATCH_POINTS * self.mismatch


def rank_normalisations(
    model: nn.Module,
    pixels: Tensor,
    groups: Tensor,
    labels: Sequence[int | None],
    batch_size: int = SAMPLE,
) -> list[NormalisationScore]:
    """The usual normalisations, best first, tried on at most SAMPLE of the images.

    pixels uint8 [n, k, h, w], groups int64 [n], labels by group. Recognition alone misleads: raw
    0-255 pixels saturate some networks until every image is called the same class. So where there
    is BatchNorm, the mismatch between its running statistics and the images' counts too.

    Whatever is more than CLOSE points behind after FEW images is tried on no more; where that is
    all but the best, they are what the scores are of.
    """

    def ranked(names: Iterable[str], count: int) -> list[NormalisationScore]:
        index = torch.linspace(0, len(pixels) - 1, min(len(pixels), count)).round().long()
        some, owners = pixels[index], groups[index]
        found = [_tried(model, some, owners, labels, name, batch_size) for name in names]
        return sorted(found, key=lambda candidate: -candidate.score)

    first = ranked(NORMALISATIONS, FEW)
    close = [c.name for c in first if c.score >= first[0].score - CLOSE]
    again = close if len(close) > 1 and len(pixels) > FEW else []
    return ranked(again, SAMPLE) + [c for c in first if c.name not in again]


def _tried(
    model: nn.Module,
    pixels: Tensor,
    groups: Tensor,
    labels: Sequence[int | None],
    name: str,
    batch_size: int,
) -> NormalisationScore:
    """One of the usual normalisations on all of these images."""
    mean, std = (_per_channel(values, pixels.shape[1]) for values in NORMALISATIONS[name])
    preprocessing = Preprocessing((pixels.shape[2], pixels.shape[3]), mean, std)
    statistics = _FirstBatchNorm(model)
    answers = logits(model, pixels, preprocessing, batch_size).argmax(dim=1).cpu()
    right = 0
    for group, label in enumerate(labels):
        given = answers[groups == group]
        if len(given):
            right += int((given == (majority(given) if label is None else label)).sum())
    return NormalisationScore(name, preprocessing, 100 * right / len(answers), statistics.close())


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Three numbers for RGB, their mean for each channel of anything else."""
    if channels == 3:
        return tuple(values)
    return (round(sum(values) / len(values), 6),) * channels


class _FirstBatchNorm:
    """KL of the first BatchNorm's input from its running statistics, as Gaussians, in nats a
    channel: 1/2 ((v + (m - M)^2) / V - 1 - log(v / V)), over all batches seen until `close`."""

    def __init__(self, model: nn.Module) -> None:
        self._count = 0
        self._moments = torch.zeros(())  # sums of x and of x^2 by channel, float64
        layers = (m for m in model.modules() if isinstance(m, _BatchNorm))
        self._layer = layer = next((m for m in layers if m.running_mean is not None), None)
        self._hook = (
            None if layer is None else layer.register_forward_pre_hook(self._look, with_kwargs=True)
        )

    def _look(self, layer: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        x = first_argument(args, named).transpose(0, 1).flatten(1)  # channels first
        # Sums of float32 are rounded too coarsely to be subtracted; MPS has no float64.
        mean, var = (t.cpu().double() for t in (x.mean(1), x.var(1, correction=0)))
        self._moments = self._moments + x.shape[1] * torch.stack([mean, var + mean**2])
        self._count += x.shape[1]

    def close(self) -> float:
        if self._hook is None or self._layer is None or not self._count:
            return 0.0
        self._hook.remove()
        running = (self._layer.running_mean, self._layer.running_var)
        expected, scale = (t.cpu().double() for t in running if t is not None)
        scale = scale.clamp_min(1e-12)
        mean, square = self._moments / self._count
        var = (square - mean**2).clamp_min(1e-12)
        ratio = (var + (mean - expected) ** 2) / scale
        return 0.5 * float((ratio - 1 - (var / scale).log()).mean())
