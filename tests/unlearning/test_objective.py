"""The objective against slow, obviously right versions of itself."""

import math

import pytest
import torch
import torch.nn.functional as F

from pbu_cli.errors import InvalidUsage
from pbu_cli.models.kernels.kernel_cropping import KernelCrop
from pbu_cli.settings import Weights
from pbu_cli.unlearning import objective


@pytest.fixture
def logits() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 5, generator=generator, dtype=torch.float64) * 3


FORGOTTEN = torch.tensor([False, True, False, True, False])


def test_log_likelihood_is_the_mean_log_probability_of_the_labels(logits: torch.Tensor) -> None:
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    slow = sum(math.log(logits[n].softmax(0)[labels[n]]) for n in range(7)) / 7
    assert objective.log_likelihood(logits, labels).item() == pytest.approx(slow, rel=1e-12)


def test_log_odds_are_the_logit_of_the_forgotten_probability(logits: torch.Tensor) -> None:
    share = logits.softmax(1)[:, FORGOTTEN].sum(1)
    odds = objective.log_odds(logits, FORGOTTEN)
    assert torch.allclose(odds, torch.logit(share), rtol=1e-10)


def test_log_odds_push_the_forgotten_logits_and_no_others(logits: torch.Tensor) -> None:
    z = logits.clone().requires_grad_()
    objective.log_odds(z, FORGOTTEN).sum().backward()
    assert z.grad is not None
    assert (z.grad[:, ~FORGOTTEN] == 0).all()
    assert (z.grad[:, FORGOTTEN] > 0).all()


def test_excess_odds_vanish_exactly_where_the_odds_are_at_most_the_goal() -> None:
    below, above = torch.logit(torch.tensor([0.0999, 0.3]))
    assert objective.excess_odds(below[None], math.log(1 / 9)) == 0
    assert objective.excess_odds(above[None], math.log(1 / 9)).item() == pytest.approx(
        (above - math.log(1 / 9)).item()
    )


def test_stability_is_the_mean_divergence_among_the_other_classes(logits: torch.Tensor) -> None:
    other = logits + torch.linspace(-1, 1, 5, dtype=torch.float64)
    slow = 0.0
    for before, after in zip(logits, other, strict=True):
        p, q = before[~FORGOTTEN].softmax(0), after[~FORGOTTEN].softmax(0)
        slow += sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True)) / 7
    reference = objective.restricted_log_softmax(logits, FORGOTTEN)
    assert objective.stability(other, reference, FORGOTTEN).item() == pytest.approx(slow)


def test_stability_does_not_depend_on_the_forgotten_logits(logits: torch.Tensor) -> None:
    reference = objective.restricted_log_softmax(logits, FORGOTTEN)
    moved = logits - 50 * FORGOTTEN
    assert objective.stability(moved, reference, FORGOTTEN).item() == pytest.approx(0, abs=1e-12)


def test_stability_is_half_the_fisher_quadratic_form_to_second_order() -> None:
    """d^T (diag p - p p^T) d / 2, with p the restricted softmax."""
    z = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    d = 1e-4 * torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    stay = torch.tensor([False, False, False])
    p = z.softmax(1)[0]
    fisher = torch.diag(p) - torch.outer(p, p)
    expected = 0.5 * (d[0] @ fisher @ d[0])
    found = objective.stability(z + d, objective.restricted_log_softmax(z, stay), stay)
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)


def test_penalty_gradient_is_autograd_of_the_quadratic_form() -> None:
    theta = [torch.randn(3, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)]
    star = [torch.randn_like(t) for t in theta]
    weights = [torch.rand_like(t) for t in theta]
    leaves = [t.clone().requires_grad_() for t in theta]
    terms = [(w * (t - s) ** 2).sum() for t, s, w in zip(leaves, star, weights, strict=True)]
    slow = torch.autograd.grad(torch.stack(terms).sum(), leaves)
    gradients = [torch.ones_like(t) for t in theta]
    curvatures = [2 * w for w in weights]
    found = objective.penalised(gradients, theta, star, curvatures)
    for gradient, expected in zip(found, slow, strict=True):
        assert torch.allclose(gradient, 1 + expected, rtol=1e-12)


def test_penalty_weights_are_beta_fisher_over_its_mean_plus_gamma() -> None:
    fisher = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([8.0]), "frozen": torch.ones(9)}
    theta = {name: torch.zeros_like(fisher[name]) for name in ("a", "b")}
    found = objective.penalty_weights(fisher, theta, Weights(beta=2.0, gamma=0.5))
    assert found["a"].tolist() == [1.0, 2.0]
    assert found["b"].tolist() == [4.5]
    scaled = {name: 1e-12 * value for name, value in fisher.items()}
    again = objective.penalty_weights(scaled, theta, Weights(beta=2.0, gamma=0.5))
    assert torch.allclose(again["a"], found["a"])


def test_penalty_weights_of_crops_are_over_the_mean_of_whole_kernels() -> None:
    crop = KernelCrop("", (1, 1), (slice(1, 2), slice(1, 2)), (0, 0), False)
    fisher = {"a": torch.zeros(1, 1, 3, 3), "b": torch.tensor([1.0])}
    fisher["a"][0, 0, 1, 1] = 4.0
    theta = {"a": torch.zeros(1, 1, 1, 1), "b": torch.zeros(1)}
    found = objective.penalty_weights(fisher, theta, Weights(beta=1.0, gamma=0.5), {"a": crop})
    torch.testing.assert_close(found["a"], torch.tensor([[[[8.5]]]]))
    torch.testing.assert_close(found["b"], torch.tensor([2.5]))


def test_penalty_weights_of_a_zero_fisher_are_gamma() -> None:
    theta = {"a": torch.zeros(2)}
    found = objective.penalty_weights({"a": torch.zeros(2)}, theta, Weights(gamma=0.5))
    assert found["a"].tolist() == [0.5, 0.5]


def test_the_papers_objective_has_the_gradient_of_its_formula() -> None:
    """alpha log P + beta (theta - theta*)^T I (theta - theta*) + gamma ||theta - theta*||^2."""
    w = Weights(alpha=2.0, beta=0.3, gamma=0.7, delta=0)
    theta = torch.randn(4, 3, dtype=torch.float64)
    star = torch.randn(4, 3, dtype=torch.float64)
    fisher = torch.rand(4, 3, dtype=torch.float64)
    x, labels = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])

    leaf = theta.clone().requires_grad_()
    log_p = F.log_softmax(x @ leaf.T, dim=1)[range(6), labels].mean()
    form = ((leaf - star) ** 2 * (w.beta * fisher / fisher.mean() + w.gamma)).sum()
    (slow,) = torch.autograd.grad(w.alpha * log_p + form, leaf)

    leaf = theta.clone().requires_grad_()
    likelihood = w.alpha * objective.log_likelihood(x @ leaf.T, labels)
    (fast,) = torch.autograd.grad(likelihood, leaf)
    weights = objective.penalty_weights({"a": fisher}, {"a": theta}, w)["a"]
    (fast,) = objective.penalised([fast], [theta], [star], [2 * weights])
    assert torch.allclose(fast, slow, rtol=1e-12)


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma", "delta"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 1e7])
def test_weights_are_bounded(name: str, value: float) -> None:
    with pytest.raises(InvalidUsage, match=name):
        Weights(**{name: value})


def test_the_discriminant_of_few_samples_is_that_of_the_formula() -> None:
    """Fewer samples than features are solved in the space of the samples."""
    torch.manual_seed(0)
    one, other = (torch.randn(n, 40, dtype=torch.float64) + n for n in (7, 9))
    means = one.mean(0), other.mean(0)
    pooled = (torch.cov(one.T, correction=0) + torch.cov(other.T, correction=0)) / 2
    pooled += 0.05 * pooled.diagonal().mean() * torch.eye(40)
    wanted = torch.linalg.solve(pooled, means[0] - means[1])
    direction, distance = objective.discriminant(one, other)
    torch.testing.assert_close(direction, wanted)
    torch.testing.assert_close(distance, wanted @ (means[0] - means[1]))


def test_the_discriminant_of_nan_raises_nothing() -> None:
    direction, _ = objective.discriminant(torch.full((3, 2), torch.nan), torch.ones(3, 2))
    assert direction.isnan().any()


def test_the_penalty_computed_in_a_scratch_buffer_is_the_same() -> None:
    g, theta, star, curvature = torch.randn(4, 5, 3).unbind()
    (free,) = objective.penalised([g], [theta], [star], [curvature])
    (inside,) = objective.penalised([g], [theta], [star], [curvature], torch.empty(20))
    assert torch.equal(free, inside)
