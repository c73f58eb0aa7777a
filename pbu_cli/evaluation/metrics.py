"""Numbers from predictions: accuracies and where images go. Arrays in, percent out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pbu_cli.settings import FORGOTTEN


def accuracy(answers: Tensor, labels: Tensor) -> float:
    """Percent of answers that equal their label; NaN of no images. int64 [n], [n].

    >>> accuracy(torch.tensor([1, 2, 3, 3]), torch.tensor([1, 2, 3, 4]))
    75.0
    """
    if not len(labels):
        return math.nan
    return 100 * int((answers == labels).sum()) / len(labels)


def interval(percent: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` images, percent; 95 % by default.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    >>> [round(bound, 1) for bound in interval(0.0, 1000)]
    [0.0, 0.4]
    """
    if not count:
        return math.nan, math.nan
    p = percent / 100
    centre = p + z * z / (2 * count)
    spread = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 100 / (1 + z * z / count)
    return max(0.0, scale * (centre - spread)), min(100.0, scale * (centre + spread))


def accuracy_per_class(answers: Tensor, labels: Tensor) -> dict[int, float]:
    """Percent right by class, for the classes that occur in `labels`."""
    classes = torch.unique(labels).tolist()
    return {c: accuracy(answers[labels == c], labels[labels == c]) for c in classes}


def answer_shares(answers: Tensor, num_classes: int) -> dict[int, float]:
    """Percent of images by the class they are answered with, commonest first, zeros left out.

    >>> answer_shares(torch.tensor([3, 1, 3, 3]), 5)
    {3: 75.0, 1: 25.0}
    """
    counts = torch.bincount(answers, minlength=num_classes)
    order = torch.argsort(counts, descending=True, stable=True).tolist()
    return {c: 100 * int(counts[c]) / len(answers) for c in order if counts[c]}


def head_mask(logits: Tensor, forgotten: Tensor) -> Tensor:
    """The control: forgotten logits at minus infinity. [n, c], bool [c] -> [n, c].

    It gets A_Df = 0 for free and changes nothing in the network: what a method achieves beyond
    accuracy has to be read against it.

    >>> head_mask(torch.tensor([[5.0, 1.0]]), torch.tensor([True, False]))
    tensor([[-inf, 1.]])
    """
    return logits.masked_fill(forgotten, -math.inf)


def row_shift(logits: Tensor, features: Tensor, forgotten: Tensor) -> Tensor | None:
    """The control that moves one row of the head: what to take from the forgotten rows' weights.

    logits [n, c] and features [n, d] of forget images, bool [c] -> [d]. The shift is t times the
    mean feature, with the least t that leaves at most 0.5 % of the images answered with a forgotten
    class. None where no t does, or an image is at odds with the mean of all. Everything before the
    head stays, so that this too forgets nothing.

    >>> logits, features = torch.tensor([[4.0, 0]]), torch.tensor([[1.0, 1]])
    >>> row_shift(logits, features, torch.tensor([True, False])).round(decimals=3)
    tensor([2., 2.])
    """
    mean = features.double().mean(dim=0)
    gone = logits.double().masked_fill(~forgotten, -math.inf).amax(dim=1)
    lead = gone - logits.double().masked_fill(forgotten, -math.inf).amax(dim=1)
    per_shift = features.double() @ mean
    turns = torch.where(per_shift > 0, lead / per_shift, torch.where(lead > 0, math.inf, -math.inf))
    left = int(FORGOTTEN / 100 * len(turns))
    least = max(0.0, float(turns.sort(descending=True).values[left]))
    # A hair more, so that rounding leaves no image on the edge.
    return (least * (1 + 1e-5) * mean).float() if math.isfinite(least) else None


def shift_rows(logits: Tensor, features: Tensor, forgotten: Tensor, shift: Tensor) -> Tensor:
    """The logits once `row_shift` has been taken from the forgotten rows. [n, c], [n, d] -> [n, c].

    >>> features, shift = torch.tensor([[1.0, 3]]), torch.tensor([2.0, 1])
    >>> shift_rows(torch.tensor([[9.0, 9]]), features, torch.tensor([True, False]), shift)
    tensor([[4., 9.]])
    """
    return logits - (features @ shift)[:, None] * forgotten
