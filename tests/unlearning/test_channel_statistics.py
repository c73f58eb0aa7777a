"""The statistics of channels: which dimension they are of, and how a mismatch is measured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pbu_cli.unlearning.channel_statistics import InputLimits, batchnorm_mismatches


@pytest.mark.parametrize(
    ("shape", "channels_last", "channel"),
    [((9, 3, 4, 2), False, 1), ((9, 4, 2, 3), True, 3), ((9, 5, 3), False, 2), ((9, 3), False, 1)],
)
def test_limits_are_per_channel(shape: tuple[int, ...], channels_last: bool, channel: int) -> None:
    x = torch.randn(shape)
    limits = InputLimits.of(x, channels_last=channels_last)
    by_channel = x.movedim(channel, 0).flatten(1)
    for found, expected in (
        (limits.mean, by_channel.mean(1)),
        (limits.deviation, by_channel.std(1, correction=0)),
        (limits.low, by_channel.amin(1)),
        (limits.high, by_channel.amax(1)),
    ):
        torch.testing.assert_close(found.flatten(), expected, rtol=1e-4, atol=1e-5)
    assert limits.mismatch(x).item() == pytest.approx(0, abs=1e-6)


def test_the_mismatch_is_in_deviations_of_the_limits() -> None:
    x = torch.randn(4000, 2) * torch.tensor([0.1, 7.0])
    limits = InputLimits.of(x, channels_last=False)
    moved = 3 * (x - limits.mean) + limits.mean + 2 * limits.deviation
    assert limits.mismatch(moved).item() == pytest.approx(2**2 + (3 - 1) ** 2, rel=1e-2)


def test_the_input_that_set_a_batchnorms_statistics_has_no_mismatch_whatever_its_epsilon() -> None:
    """A channel whose variance is no more than the epsilon counts most."""
    norm = nn.BatchNorm1d(2, eps=1e-3, momentum=None)
    x: Tensor = torch.randn(4000, 2) * torch.tensor([0.03, 2.0])
    norm.train()(x)
    with batchnorm_mismatches([norm.eval()]) as mismatches:
        norm(x)
    assert mismatches[0].item() == pytest.approx(0, abs=1e-6)
