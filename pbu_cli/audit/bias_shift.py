"""The simplest attack: how much of a class comes back by a shift of its logits alone.

The shift is a free choice of the head's bias. No parameter is trained.
"""

from __future__ import annotations

import math

from torch import Tensor

LabelledLogits = tuple[Tensor, Tensor]  # logits [n, c] and int64 labels [n]


def best_bias(
    forget: LabelledLogits, retain: LabelledLogits, forgotten: Tensor, floor: float
) -> float:
    """The highest A_Df, in percent, that a shift of the forgotten logits reaches.

    A constant t is added to the logits of the classes in `forgotten`, bool [c]. An image is
    predicted as one of them where t exceeds max_retained z - max_forgotten z, so that A_Df never
    falls and A_Dr never rises with t. The best t is the largest one that leaves A_Dr at `floor`
    percent or above. NaN where not even t = -inf does, or where a logit is not finite.

    >>> import torch
    >>> forgotten = torch.tensor([True, False])
    >>> forget = torch.tensor([[0.0, 3], [0, 6]]), torch.tensor([0, 0])
    >>> retain = torch.tensor([[0.0, 4], [0, 7]]), torch.tensor([1, 1])
    >>> best_bias(forget, retain, forgotten, 100)   # t up to 4 leaves both retained images right
    50.0
    >>> best_bias(forget, retain, forgotten, 50)    # t up to 7 leaves one of them right
    100.0
    """
    forgotten = forgotten.cpu()
    if not bool(forget[0].isfinite().all() and retain[0].isfinite().all()):
        return math.nan
    correct = retain[0].masked_fill(forgotten, -math.inf).argmax(dim=1) == retain[1]
    thresholds = _shift_needed(retain[0], forgotten)[correct].sort(descending=True).values
    needed = math.ceil(floor / 100 * len(retain[1]) - 1e-9)
    if needed > len(thresholds):
        return math.nan
    t = float(thresholds[needed - 1]) if needed > 0 else math.inf
    predictions = forget[0].masked_fill(~forgotten, -math.inf).argmax(dim=1)
    recognised = (predictions == forget[1]) & (_shift_needed(forget[0], forgotten) < t)
    return 100 * float(recognised.double().mean())


def _shift_needed(logits: Tensor, forgotten: Tensor) -> Tensor:
    """The shift of the forgotten logits above which an image is predicted as one of them. [n]."""
    retained = logits.masked_fill(forgotten, -math.inf).amax(dim=1)
    return retained - logits.masked_fill(~forgotten, -math.inf).amax(dim=1)
