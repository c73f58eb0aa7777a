"""Statistics against counting every pair and against known distributions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pbu_cli.evaluation.statistics import (
    auc,
    balanced_accuracy,
    bootstrap,
    mean_interval,
    recall,
    wilson_interval,
)


def by_pairs(positive: Any, negative: Any) -> Any:
    wins = [float(p > n) + 0.5 * float(p == n) for p in positive for n in negative]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("values", [3, 10, 10_000])  # with many ties, some, hardly any
def test_auc_is_the_share_of_pairs_in_order(values: int) -> None:
    generator = torch.Generator().manual_seed(values)
    positive = torch.randint(values, (40,), generator=generator).float()
    negative = torch.randint(values, (70,), generator=generator).float()
    assert auc(positive, negative) == pytest.approx(by_pairs(positive, negative), abs=1e-6)


def test_auc_takes_infinite_scores() -> None:
    inf = float("inf")
    assert auc(torch.tensor([inf, -inf]), torch.tensor([0.0, -inf])) == (1 + 1 + 0 + 0.5) / 4


def test_recall_keeps_the_false_positive_rate() -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(500, generator=generator) + 1
    negative = torch.randn(990, generator=generator)
    thresholds = [t for t in negative.tolist() if (negative > t).double().mean() <= 0.05]
    best = max(100 * (positive > t).double().mean().item() for t in thresholds)
    assert recall(positive, negative) == pytest.approx(best, abs=1e-4)


def test_recall_of_equal_scores_is_0() -> None:
    assert recall(torch.zeros(9), torch.zeros(100)) == 0


def test_statistics_take_resamples_as_leading_dimensions() -> None:
    positive, negative = torch.randn(3, 20), torch.randn(3, 60)
    for statistic in (auc, recall, balanced_accuracy):
        whole = statistic(positive, negative)
        each = [statistic(p, n) for p, n in zip(positive, negative, strict=True)]
        assert torch.equal(whole, torch.stack(each))


def test_bootstrap_covers_as_often_as_it_says() -> None:
    """AUC of N(1, 1) against N(0, 1) is Phi(1 / sqrt 2) = 0.76025."""
    generator = torch.Generator().manual_seed(3)
    covered = 0
    for seed in range(200):
        groups = (torch.randn(80, generator=generator) + 1, torch.randn(80, generator=generator))
        low, high = bootstrap(groups, auc, seed=seed, resamples=300)
        covered += low <= 0.76025 <= high
    assert 0.90 <= covered / 200 <= 0.98


def test_bootstrap_is_the_same_for_the_same_seed_and_in_several_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = torch.randn(50)
    whole = bootstrap((group,), lambda v: v.mean(dim=-1), seed=5)
    assert whole == bootstrap((group,), lambda v: v.mean(dim=-1), seed=5)
    monkeypatch.setattr("pbu_cli.evaluation.statistics._SCORES_IN_MEMORY", 120)
    assert whole == pytest.approx(bootstrap((group,), lambda v: v.mean(dim=-1), seed=5))


def test_the_interval_of_a_mean_is_about_two_standard_errors() -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(7))
    mean, (low, high) = mean_interval(values)
    assert mean == pytest.approx(values.mean().item())
    assert (high - low) / 2 == pytest.approx(1.96 / math.sqrt(4000), rel=0.1)


def test_wilson_interval_without_images_is_unknown() -> None:
    assert all(math.isnan(bound) for bound in wilson_interval(0.0, 0))


def test_wilson_interval_matches_its_closed_form() -> None:
    """8 of 10 images at z = 1.96, with Wilson's centre and spread worked out by hand."""
    low, high = wilson_interval(80.0, 10)
    assert (round(low, 1), round(high, 1)) == (49.0, 94.3)


def test_wilson_interval_covers_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(1)
    p, n = 0.07, 200
    covered = 0
    for _ in range(2000):
        share = 100 * (torch.rand(n, generator=generator) < p).double().mean().item()
        low, high = wilson_interval(share, n)
        covered += low <= 100 * p <= high
    assert 0.93 < covered / 2000 < 0.97
