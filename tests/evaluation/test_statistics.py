"""How well a score separates, against counting every pair and against known distributions."""

import pytest
import torch

from pbu_cli.evaluation.statistics import auc, balanced_accuracy, bootstrap, recall


def by_pairs(positive, negative):
    wins = [float(p > n) + 0.5 * float(p == n) for p in positive for n in negative]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("values", [3, 10, 10_000])  # with many ties, some, hardly any
def test_auc_is_the_share_of_pairs_in_order(values):
    generator = torch.Generator().manual_seed(values)
    positive = torch.randint(values, (40,), generator=generator).float()
    negative = torch.randint(values, (70,), generator=generator).float()
    assert auc(positive, negative) == pytest.approx(by_pairs(positive, negative), abs=1e-6)


def test_auc_stands_infinities():
    inf = float("inf")
    assert auc(torch.tensor([inf, -inf]), torch.tensor([0.0, -inf])) == (1 + 1 + 0 + 0.5) / 4


def test_recall_lets_no_more_negatives_through_than_allowed():
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(500, generator=generator) + 1
    negative = torch.randn(990, generator=generator)
    thresholds = [t for t in negative.tolist() if (negative > t).double().mean() <= 0.05]
    best = max(100 * (positive > t).double().mean().item() for t in thresholds)
    assert recall(positive, negative) == pytest.approx(best, abs=1e-4)


def test_recall_of_scores_that_are_all_alike_is_nothing():
    assert recall(torch.zeros(9), torch.zeros(100)) == 0


def test_statistics_take_resamples_as_leading_dimensions():
    positive, negative = torch.randn(3, 20), torch.randn(3, 60)
    for statistic in (auc, recall, balanced_accuracy):
        whole = statistic(positive, negative)
        each = [statistic(p, n) for p, n in zip(positive, negative, strict=True)]
        assert torch.equal(whole, torch.stack(each))


def test_bootstrap_covers_as_often_as_it_says():
    """AUC of N(1, 1) against N(0, 1) is Phi(1 / sqrt 2) = 0.76025."""
    generator = torch.Generator().manual_seed(3)
    inside = 0
    for seed in range(200):
        groups = (torch.randn(80, generator=generator) + 1, torch.randn(80, generator=generator))
        low, high = bootstrap(groups, auc, seed=seed, resamples=300)
        inside += low <= 0.76025 <= high
    assert 0.90 <= inside / 200 <= 0.98


def test_bootstrap_is_the_same_for_the_same_seed_and_in_pieces(monkeypatch):
    group = torch.randn(50)
    whole = bootstrap((group,), lambda v: v.mean(dim=-1), seed=5)
    assert whole == bootstrap((group,), lambda v: v.mean(dim=-1), seed=5)
    monkeypatch.setattr("pbu_cli.evaluation.statistics._AT_ONCE", 120)
    assert whole == pytest.approx(bootstrap((group,), lambda v: v.mean(dim=-1), seed=5))
