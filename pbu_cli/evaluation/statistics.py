"""How well a score tells two groups of images apart, and how sure that is.

`positive` and `negative` are the scores of the two groups, a higher score meaning positive; any
leading dimensions are for resamples. Shares are in percent, the AUC is from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FALSE_POSITIVES = 0.05  # the rate at which recall is read
RESAMPLES = 1000
_AT_ONCE = 2**22  # resampled scores in memory


def auc(positive: Tensor, negative: Tensor) -> Tensor:
    """P(positive > negative) + P(positive = negative) / 2, over all pairs. [..., m], [..., n].

    The area under the ROC curve (Mann and Whitney, 1947), by sorting instead of by pairs.

    >>> auc(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0, 2.0]))   # 1.5 and 3 of 3
    tensor(0.7500)
    """
    order = negative.sort(dim=-1).values
    below = torch.searchsorted(order, positive, right=False)
    not_above = torch.searchsorted(order, positive, right=True)
    return (below + not_above).double().mean(dim=-1).div(2 * negative.shape[-1]).float()


def recall(positive: Tensor, negative: Tensor, false_positives: float = FALSE_POSITIVES) -> Tensor:
    """Percent of positives above the lowest threshold that at most so many negatives exceed.

    >>> recall(torch.tensor([1.0, 2, 3, 4]), torch.arange(100) / 25, 0.2)   # threshold 3.16
    tensor(25.)
    """
    count = negative.shape[-1]
    allowed = int(false_positives * count + 1e-9)
    threshold = negative.kthvalue(count - allowed, dim=-1, keepdim=True).values
    return 100 * (positive > threshold).double().mean(dim=-1).float()


def balanced_accuracy(positive: Tensor, negative: Tensor) -> Tensor:
    """Mean of the shares right in either group, percent, with the threshold at 0.

    >>> balanced_accuracy(torch.tensor([1.0, -1]), torch.tensor([-1.0, -2, -3]))
    tensor(75.)
    """
    right = (positive > 0).double().mean(dim=-1) + (negative <= 0).double().mean(dim=-1)
    return 50 * right.float()


def bootstrap(
    groups: Sequence[Tensor],
    statistic: Callable[..., Tensor],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95 % percentile interval of `statistic(*groups)`, every group [n_i] resampled by itself.

    It speaks of the draw of the images scored, not of how networks or classifiers were trained.
    Source: Efron, "Bootstrap methods: another look at the jackknife", 1979.

    >>> bootstrap([torch.tensor([2.0, 2.0])], lambda x: x.mean(dim=-1))
    (2.0, 2.0)
    """
    generator = torch.Generator().manual_seed(seed)
    largest = max(group.numel() for group in groups)
    at_once = max(1, min(resamples, _AT_ONCE // largest))
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
