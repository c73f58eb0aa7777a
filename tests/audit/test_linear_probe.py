"""The probe on features whose separability is known."""

import pytest
import torch

from pbu_cli.audit.linear_probe import held_out_scores, probe


def gaussians(shift, m=600, n=900, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    positive = torch.randn(m, d, generator=generator)
    positive[:, 0] += shift
    return positive, torch.randn(n, d, generator=generator)


def test_features_that_tell_nothing_are_at_half():
    found = probe(*gaussians(0.0))
    assert found.balanced == pytest.approx(50, abs=3)
    assert found.recall == pytest.approx(5, abs=3)


def test_more_features_than_images_tell_nothing_either():
    """A classifier that scored images it had seen would be at 100 here."""
    found = probe(*gaussians(0.0, m=100, n=100, d=400))
    assert found.balanced == pytest.approx(50, abs=10)


def test_known_gaussians_give_the_best_that_any_classifier_can():
    """Means 2 apart: balanced accuracy Phi(1) = 84.1 %, recall 1 - Phi(1.645 - 2) = 63.9 %."""
    found = probe(*gaussians(2.0, m=2000, n=6000))
    assert found.balanced == pytest.approx(84.1, abs=1.5)
    assert found.recall == pytest.approx(63.9, abs=4)
    assert found.balanced_interval[0] < found.balanced < found.balanced_interval[1]
    assert found.recall_interval[0] < found.recall < found.recall_interval[1]


def test_scale_and_constant_features_do_not_matter():
    positive, negative = gaussians(2.0)
    factors = torch.tensor([1e-6, 1e4, 1.0, 1e3, 0.0])
    assert probe(positive * factors, negative * factors).balanced == pytest.approx(
        probe(positive[:, :4], negative[:, :4]).balanced, abs=1
    )


def test_rare_images_count_as_much_as_the_many():
    """Without equal weights, 50 images among 2,000 would never be found."""
    assert probe(*gaussians(2.0, m=50, n=2000)).balanced > 75


def test_the_same_seed_scores_alike_and_too_few_images_are_unknown():
    pair = gaussians(1.0, m=60, n=60)
    first, again = held_out_scores(*pair, seed=3), held_out_scores(*pair, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert probe(pair[0][:19], pair[1]) is None


def test_any_seed_that_torch_takes_will_do():
    assert probe(*gaussians(1.0, m=60, n=60), seed=2**62) is not None
