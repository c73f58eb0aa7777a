"""How well a score tells two groups of images apart, and 95 % intervals.

`positive` and `negative` are the scores of the two groups; a higher score means positive. Leading
dimensions hold resamples. Shares are in percent, the AUC is from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FALSE_POSITIVES = 0.05  # the rate at which recall is measured
RESAMPLES = 1000
_SCORES_IN_MEMORY = 2**22  # of resamples that are made at once


def auc(positive: Tensor, negative: Tensor) -> Tensor:
    """P(positive > negative) + P(positive = negative) / 2, over all pairs. [..., m], [..., n].

    The area under the ROC curve (Mann and Whitney, 1947), computed by sorting.

    >>> auc(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0, 2.0]))   # 1.5 and 3 of 3
    tensor(0.7500)
    """
    order = negative.sort(dim=-1).values
    below = torch.searchsorted(order, positive, right=False)
    not_above = torch.searchsorted(order, positive, right=True)
    return (below + not_above).double().mean(dim=-1).div(2 * negative.shape[-1]).float()


def recall(positive: Tensor, negative: Tensor, false_positives: float = FALSE_POSITIVES) -> Tensor:
    """Percent of positives above the lowest threshold that keeps the false positive rate.

    false_positives: the largest share of negatives that may exceed the threshold, 0 to 1.

    >>> recall(torch.tensor([1.0, 2, 3, 4]), torch.arange(100) / 25, 0.2)   # threshold 3.16
    tensor(25.)
    """
    count = negative.shape[-1]
    allowed = int(false_positives * count + 1e-9)
    threshold = negative.kthvalue(count - allowed, dim=-1, keepdim=True).values
    return 100 * (positive > threshold).double().mean(dim=-1).float()


def balanced_accuracy(positive: Tensor, negative: Tensor) -> Tensor:
    """Mean of the two groups' accuracies in percent; scores above 0 are predicted as positive.

    >>> balanced_accuracy(torch.tensor([1.0, -1]), torch.tensor([-1.0, -2, -3]))
    tensor(75.)
    """
    correct = (positive > 0).double().mean(dim=-1) + (negative <= 0).double().mean(dim=-1)
    return 50 * correct.float()


def bootstrap(
    groups: Sequence[Tensor],
    statistic: Callable[..., Tensor],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95 % percentile interval of `statistic(*groups)`; each group [n_i, ...] is resampled alone.

    The interval covers the draw of the images that were scored. It does not cover the training of
    the networks or classifiers.
    Source: Efron, "Bootstrap methods: another look at the jackknife", 1979.

    >>> bootstrap([torch.tensor([2.0, 2.0])], lambda x: x.mean(dim=-1))
    (2.0, 2.0)
    """
    generator = torch.Generator().manual_seed(seed)
    largest = max(group.numel() for group in groups)
    at_once = max(1, min(resamples, _SCORES_IN_MEMORY // largest))
    values = []
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        values.append(
            statistic(
                *(
                    group[torch.randint(len(group), (rows, len(group)), generator=generator)]
                    for group in groups
                )
            )
        )
    low, high = torch.cat(values).double().quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return low, high


def mean_interval(values: Tensor, *, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """The mean of one number per image, [n], and its 95 % bootstrap interval."""
    return values.mean().item(), bootstrap((values,), lambda v: v.mean(dim=-1), seed=seed)


def wilson_interval(percent: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` images, in percent; 95 % by default.

    NaN without images. Source: Wilson, "Probable inference, the law of succession, and statistical
    inference", 1927.

    >>> [round(bound, 1) for bound in wilson_interval(0.0, 1000)]
    [0.0, 0.4]
    """
    if not count:
        return math.nan, math.nan
    p = percent / 100
    centre = p + z * z / (2 * count)
    spread = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 100 / (1 + z * z / count)
    return max(0.0, scale * (centre - spread)), min(100.0, scale * (centre + spread))
