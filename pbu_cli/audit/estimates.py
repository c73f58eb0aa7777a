"""A measured number with its interval."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pbu_cli.evaluation.statistics import mean_interval


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    interval: tuple[float, float]


def mean_estimate(values: Tensor, seed: int) -> Estimate:
    """The mean of one number per image, [n], with its bootstrap interval.

    Where a number is infinite, so are the mean and both ends of its interval.

    >>> import torch
    >>> mean_estimate(torch.tensor([2.0, 2.0]), seed=0)
    Estimate(value=2.0, interval=(2.0, 2.0))
    """
    if not bool(values.isfinite().all()):
        mean = values.mean().item()
        return Estimate(mean, (mean, mean))
    return Estimate(*mean_interval(values, seed=seed))
