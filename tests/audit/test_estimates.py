"""A mean with its interval, of finite and of infinite numbers."""

from __future__ import annotations

import math

import torch

from pbu_cli.audit.estimates import mean_estimate


def test_the_interval_of_a_mean_holds_it() -> None:
    found = mean_estimate(torch.tensor([0.0, 1.0, 2.0, 5.0]), seed=0)
    assert found.value == 2
    assert 0 <= found.interval[0] < 2 < found.interval[1] <= 5


def test_a_mean_with_an_infinite_number_is_infinite() -> None:
    found = mean_estimate(torch.tensor([0.0, -math.inf]), seed=0)
    assert found.value == found.interval[0] == found.interval[1] == -math.inf
