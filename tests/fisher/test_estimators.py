"""The output vectors multiply out to the matrix that they stand for."""

from __future__ import annotations

import pytest
import torch

from pbu_cli.fisher.estimators import empirical, exact, monte_carlo

LOGITS = torch.tensor([[0.5, -1.0, 2.0, 0.0], [300.0, 0.0, -300.0, 1.0]], dtype=torch.double)


def test_empirical_is_the_gradient_of_the_log_likelihood() -> None:
    leaf, labels = LOGITS.clone().requires_grad_(), torch.tensor([3, 2])
    torch.nn.functional.cross_entropy(leaf, labels, reduction="sum").backward()
    (v,) = empirical(LOGITS, labels)
    assert leaf.grad is not None
    torch.testing.assert_close(v, -leaf.grad)


def test_empirical_keeps_its_digits_for_a_confident_image() -> None:
    (v,) = empirical(torch.tensor([[20.0, 0.0]]), torch.tensor([0]))
    assert v[0, 0] == -v[0, 1]
    torch.testing.assert_close(v[0, 0], torch.tensor(-20.0).exp(), rtol=1e-6, atol=0)


def test_exact_factors_the_covariance_in_one_vector_less_than_classes() -> None:
    vectors = list(exact(LOGITS, torch.zeros(2, dtype=torch.long)))
    assert len(vectors) == LOGITS.shape[1] - 1
    found = sum(torch.einsum("ni,nj->nij", v, v) for v in vectors)
    p = LOGITS.softmax(1)
    torch.testing.assert_close(found, torch.diag_embed(p) - torch.einsum("ni,nj->nij", p, p))


def test_exact_takes_a_class_that_is_ruled_out() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [-torch.inf, -torch.inf, 0.0]])
    assert all(v.isfinite().all() for v in exact(logits, torch.tensor([0, 0])))


@pytest.mark.parametrize("k", [1, 3])
def test_drawn_labels_follow_p(k: int) -> None:
    n = 30_000
    logits = LOGITS[:1].expand(n, -1)
    uniform = torch.rand(n, k, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    found = sum(v.T @ v for v in monte_carlo(logits, uniform)) / n
    p = LOGITS[0].softmax(0)
    assert float((found - (p.diag() - p.outer(p))).abs().max()) < 5e-3
    assert len(list(monte_carlo(logits, uniform))) == k
