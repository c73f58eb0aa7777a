"""POUR: the projection in the head, and its distillation into the layers before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from pbu_cli.benchmark.methods.forget_images import pour
from pbu_cli.benchmark.methods.task import Task
from pbu_cli.benchmark.training import train_step
from pbu_cli.errors import PbuError
from tests.benchmark.methods.noisy_patterns import (
    CLASSES,
    FORGET_CLASS,
    accuracies,
    head_of,
    results_of,
    running_mean_of,
    seeded,
)


def test_the_projection_leaves_logits_of_orthogonal_features_alone(task: Task) -> None:
    """Features orthogonal to w keep all logits. Along w every logit is the bias alone."""
    projected, _ = results_of(task, "pour")
    before, after = head_of(task.original), head_of(projected.network)
    w = before.weight.detach()[FORGET_CLASS]
    features = torch.randn(20, 128, generator=seeded(0))
    orthogonal = features - torch.outer(features @ w, w) / w.square().sum()
    assert torch.allclose(after(orthogonal), before(orthogonal), atol=1e-4)
    along = torch.outer(torch.linspace(-2, 2, 5), w)
    assert torch.allclose(after(along), before.bias.expand(5, CLASSES), atol=1e-4)
    assert torch.allclose(after.weight[FORGET_CLASS], torch.zeros(128), atol=1e-5)


def test_the_head_of_projected_features_is_the_folded_head(task: Task) -> None:
    """W (P h) is (W P) h, with P written out as a matrix."""
    projected, _ = results_of(task, "pour")
    before, after = (head_of(network) for network in (task.original, projected.network))
    w = before.weight.detach()[FORGET_CLASS].double()
    p = torch.eye(128, dtype=torch.float64) - torch.outer(w, w) / (w @ w)
    h = torch.randn(20, 128, generator=seeded(0), dtype=torch.float64)
    by_hand = (h @ p.T) @ before.weight.detach().double().T + before.bias.detach().double()
    assert torch.allclose(after.double()(h), by_hand, atol=1e-4)


def test_distillation_moves_the_features_and_neither_head_nor_batchnorm(task: Task) -> None:
    settings = replace(pour.SETTINGS, rate=1e-3, epochs=30)
    _, distilled = pour.unlearn(task, settings)
    assert torch.equal(head_of(distilled.network).weight, head_of(task.original).weight)
    assert torch.equal(running_mean_of(distilled.network), running_mean_of(task.original))
    inputs, _ = next(task.forget.batches(100))
    w = head_of(task.original).weight.detach()[FORGET_CLASS]
    with torch.no_grad():
        target = pour.project_out(pour.features_of(task.original, "4", inputs), w)
        distances = [
            (pour.features_of(network, "4", inputs) - target).norm()
            for network in (task.original, distilled.network)
        ]
    assert distances[1] < 0.9 * distances[0]


def test_a_linear_encoder_learns_the_projection(task: Task) -> None:
    """A linear layer U before the head can become P U, and then both results are one function."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Linear(8, CLASSES))
    optimiser = torch.optim.Adam(linear.parameters(), 1e-2)
    for loader in (task.retained, task.forget) * 20:
        for inputs, labels in loader.batches(50):
            train_step(linear, optimiser, inputs, labels)
    settings = replace(pour.SETTINGS, rate=5e-3, epochs=300, weight_decay=0.0)
    optimiser.zero_grad()
    projected, distilled = pour.unlearn(replace(task, original=linear.eval()), settings)
    inputs, _ = next(task.forget.batches(100))
    before, p, d = (n(inputs).detach() for n in (linear, projected.network, distilled.network))
    assert (d - p).norm() < 0.05 * (p - before).norm()


def test_the_projected_network_forgets_the_class(task: Task) -> None:
    results = results_of(task, "pour")
    assert [r.stage for r in results] == ["P", "D"]
    a_df, a_dr = accuracies(results[0].network)
    assert a_df < 10
    assert a_dr > 90


def test_a_network_without_a_linear_head_is_refused(task: Task) -> None:
    headless = replace(task, original=nn.Sequential(nn.Conv2d(1, CLASSES, 6), nn.Flatten()))
    with pytest.raises(PbuError, match=r"pour: .* linear layer"):
        results_of(headless, "pour")
