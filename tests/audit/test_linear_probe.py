"""The linear probe on features whose separability is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pbu_cli.audit.linear_probe import held_out_scores, probe


def gaussians(shift: Any, m: int = 600, n: int = 900, d: int = 5, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    positive = torch.randn(m, d, generator=generator)
    positive[:, 0] += shift
    return positive, torch.randn(n, d, generator=generator)


def test_features_without_information_give_50_percent() -> None:
    found = probe(*gaussians(0.0))
    assert found.balanced == pytest.approx(50, abs=3)
    assert found.recall == pytest.approx(5, abs=3)


def test_more_features_than_images_give_50_percent_too() -> None:
    """A classifier that scored images which it was fitted to would be at 100 here."""
    found = probe(*gaussians(0.0, m=100, n=100, d=400))
    assert found.balanced == pytest.approx(50, abs=10)


def test_known_gaussians_give_the_best_that_any_classifier_reaches() -> None:
    """Means 2 apart: balanced accuracy Phi(1) = 84.1 %, recall 1 - Phi(1.645 - 2) = 63.9 %."""
    found = probe(*gaussians(2.0, m=2000, n=6000))
    assert found.balanced == pytest.approx(84.1, abs=1.5)
    assert found.recall == pytest.approx(63.9, abs=4)
    assert found.balanced_interval[0] < found.balanced < found.balanced_interval[1]
    assert found.recall_interval[0] < found.recall < found.recall_interval[1]


def test_scale_and_constant_features_do_not_matter() -> None:
    positive, negative = gaussians(2.0)
    factors = torch.tensor([1e-6, 1e4, 1.0, 1e3, 0.0])
    assert probe(positive * factors, negative * factors).balanced == pytest.approx(
        probe(positive[:, :4], negative[:, :4]).balanced, abs=1
    )


def test_both_groups_count_the_same_whatever_their_sizes() -> None:
    """Without equal weights, 50 images among 2,000 would not be found."""
    assert probe(*gaussians(2.0, m=50, n=2000)).balanced > 75


def test_the_same_seed_gives_the_same_scores_and_too_few_images_are_unknown() -> None:
    pair = gaussians(1.0, m=60, n=60)
    first, again = held_out_scores(*pair, seed=3), held_out_scores(*pair, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert probe(pair[0][:19], pair[1]) is None


def test_every_seed_that_torch_takes_is_accepted() -> None:
    assert probe(*gaussians(1.0, m=60, n=60), seed=2**62) is not None
