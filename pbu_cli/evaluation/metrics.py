"""Numbers from predictions and logits: accuracies in percent, and the two controls."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pbu_cli.settings import FORGOTTEN


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Percent of predictions that equal their label; NaN without images. int64 [n], [n].

    >>> accuracy(torch.tensor([1, 2, 3, 3]), torch.tensor([1, 2, 3, 4]))
    75.0
    """
    if not len(labels):
        return math.nan
    return 100 * int((predictions == labels).sum()) / len(labels)


def accuracy_per_class(predictions: Tensor, labels: Tensor) -> dict[int, float]:
    """Accuracy in percent by class, for the classes that occur in `labels`. int64 [n], [n]."""
    classes = torch.unique(labels).tolist()
    return {c: accuracy(predictions[labels == c], labels[labels == c]) for c in classes}


def adaptive_unlearning_score(retain: Tensor, forget: Tensor) -> Tensor:
    """AUS = (1 - (A_Dr of the original - A_Dr)) / (1 + A_Df), with accuracies from 0 to 1.

    retain: for each retained image whether the original and this network are right, 0 or 1,
    [..., m, 2]. forget: whether this network is right, [..., n]. The result is 1 for a network that
    forgets the class and keeps the original's A_Dr, and above 1 for one that gains A_Dr, as the
    head mask does. Source: Cotogni et al., "DUCK: distance-based unlearning via centroid
    kinematics", arXiv 2312.02052, for the removal of a class.

    >>> retain = torch.tensor([[1.0, 1], [1, 1], [1, 0], [0, 0]])   # A_Dr from .75 to .5
    >>> adaptive_unlearning_score(retain, torch.tensor([1.0, 0, 0, 0]))   # .75 / 1.25
    tensor(0.6000)
    """
    original, own = retain.mean(dim=-2).unbind(dim=-1)
    return (1 - (original - own)) / (1 + forget.mean(dim=-1))


def prediction_shares(predictions: Tensor, num_classes: int) -> dict[int, float]:
    """Percent of images by predicted class, commonest first, without the zeros. int64 [n].

    >>> prediction_shares(torch.tensor([3, 1, 3, 3]), 5)
    {3: 75.0, 1: 25.0}
    """
    counts = torch.bincount(predictions, minlength=num_classes)
    order = torch.argsort(counts, descending=True, stable=True).tolist()
    return {c: 100 * int(counts[c]) / len(predictions) for c in order if counts[c]}


def head_mask(logits: Tensor, forgotten: Tensor) -> Tensor:
    """The head mask control: forgotten logits at minus infinity. [n, c], bool [c] -> [n, c].

    It gets A_Df = 0 for free and changes nothing in the network. A method has to be judged by what
    it achieves beyond this control.

    >>> head_mask(torch.tensor([[5.0, 1.0]]), torch.tensor([True, False]))
    tensor([[-inf, 1.]])
    """
    return logits.masked_fill(forgotten, -math.inf)


def row_shift(logits: Tensor, features: Tensor, forgotten: Tensor) -> Tensor | None:
    """The row shift control: the vector to subtract from the weight rows of the forgotten classes.

    logits [n, c] and features [n, d] of the forget images, bool [c] -> [d]. The shift is t times
    the mean feature, with the smallest t >= 0 at which at most 0.5 % of the images are predicted as
    a forgotten class. None where no t achieves this, because some images' features have no positive
    product with the mean feature. Everything before the head stays as it is, so this control
    forgets nothing either.

    >>> logits, features = torch.tensor([[4.0, 0]]), torch.tensor([[1.0, 1]])
    >>> row_shift(logits, features, torch.tensor([True, False])).round(decimals=3)
    tensor([2., 2.])
    """
    mean = features.double().mean(dim=0)
    forgotten_logit = logits.double().masked_fill(~forgotten, -math.inf).amax(dim=1)
    lead = forgotten_logit - logits.double().masked_fill(forgotten, -math.inf).amax(dim=1)
    lead_per_t = features.double() @ mean
    # The t from which on an image is no longer predicted as a forgotten class.
    needed = torch.where(
        lead_per_t > 0, lead / lead_per_t, torch.where(lead > 0, math.inf, -math.inf)
    )
    may_stay = int(FORGOTTEN / 100 * len(needed))
    t = max(0.0, float(needed.sort(descending=True).values[may_stay]))
    # The factor is slightly above 1 so that rounding leaves no image on the edge.
    return (t * (1 + 1e-5) * mean).float() if math.isfinite(t) else None


def shift_rows(logits: Tensor, features: Tensor, forgotten: Tensor, shift: Tensor) -> Tensor:
    """The logits once `shift` is subtracted from the forgotten rows. [n, c], [n, d] -> [n, c].

    >>> features, shift = torch.tensor([[1.0, 3]]), torch.tensor([2.0, 1])
    >>> shift_rows(torch.tensor([[9.0, 9]]), features, torch.tensor([True, False]), shift)
    tensor([[4., 9.]])
    """
    return logits - (features @ shift)[:, None] * forgotten
