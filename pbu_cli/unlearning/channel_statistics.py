"""The channel statistics that synthetic inputs are held to, and how far they are from them.

Index letters: n inputs, k channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pbu_cli.models.hooks import first_argument, forward_hooks

EPSILON = 1e-5  # added to variances, so that none is 0


@dataclass(frozen=True)
class InputLimits:
    """The range and the statistics of some inputs, which other inputs are held to.

    over: the dimensions of the inputs other than that of the channels. mean, deviation: of each
    channel. low, high: the least and the largest value in each channel. All four have as many
    dimensions as the inputs.
    """

    over: tuple[int, ...]
    mean: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, inputs: Tensor, *, channels_last: bool) -> InputLimits:
        """The limits that `inputs` set: maps [n, k, h, w], or [n, h, w, k] with `channels_last`,
        tokens [n, t, k] or vectors [n, k]."""
        maps = inputs.dim() == 4 and not channels_last
        over = (0, 2, 3) if maps else tuple(range(inputs.dim() - 1))
        mean, deviation = _statistics(inputs, over)
        return cls(over, mean, deviation, inputs.amin(over, True), inputs.amax(over, True))

    def mismatch(self, inputs: Tensor) -> Tensor:
        """The `mismatch` of the statistics of `inputs` to these limits. -> []."""
        return mismatch(_statistics(inputs, self.over), (self.mean, self.deviation))


@contextmanager
def batchnorm_mismatches(norms: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that receives, whenever one of these BatchNorms is called, the `mismatch` of the
    statistics of its input to its running statistics."""
    mismatches: list[Tensor] = []

    def compare(norm: Any, args: Any, kwargs: Any) -> None:
        x = first_argument(args, kwargs)
        var, mean = torch.var_mean(x.float(), [d for d in range(x.dim()) if d != 1], correction=0)
        running = norm.running_mean, (norm.running_var + norm.eps).sqrt()
        mismatches.append(mismatch((mean, (var + norm.eps).sqrt()), running))

    with forward_hooks(inputs=[(norm, compare) for norm in norms]):
        yield mismatches


def mismatch(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> Tensor:
    """How far means and standard deviations are from the expected ones, in expected deviations:
    mean_k ((m_k - m*_k) / s*_k)^2 + (s_k / s*_k - 1)^2. -> [].

    >>> one, two = torch.tensor([1.0]), torch.tensor([2.0])
    >>> mismatch((two, two), (one, one))
    tensor(2.)
    """
    (mean, deviation), (expected_mean, expected_deviation) = found, expected
    of_means = ((mean - expected_mean) / expected_deviation).square()
    return (of_means + (deviation / expected_deviation - 1).square()).mean()


def total_variance(features: Tensor) -> Tensor:
    """The trace of the covariance of features [n, d], estimated from a sample; never 0. -> []."""
    return features.var(dim=0, correction=min(1, len(features) - 1)).sum() + EPSILON


def _statistics(x: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, with as many dimensions as x."""
    variance, mean = torch.var_mean(x.float(), over, correction=0, keepdim=True)
    return mean, (variance + EPSILON).sqrt()
