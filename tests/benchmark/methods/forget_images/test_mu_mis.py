"""MU-Mis: the sensitivities, the classes that are drawn, and when it stops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.methods.forget_images import mu_mis
from pbu_cli.benchmark.methods.task import Task
from tests.benchmark.methods.noisy_patterns import UNIT, accuracies, seeded


def test_the_loss_of_a_linear_network_is_the_difference_of_two_squared_rows() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    w = linear[1].weight.detach()
    x = torch.randn(5, 1, 2, 2, generator=seeded(0))
    labels, others = torch.tensor([0, 0, 0, 0, 0]), torch.tensor([1, 2, 1, 2, 1])
    own, other = mu_mis.squared_sensitivities(linear, x, [labels, others])
    expected = [(w[0].square().sum() - w[k].square().sum()).item() for k in others]
    assert (own - other).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_sensitivities_are_those_of_images_one_by_one_and_finite_differences(
    task: Task,
) -> None:
    network = task.copy_original().double()
    inputs, labels = next(task.forget.batches(3))
    inputs = inputs.double()
    (together,) = mu_mis.squared_sensitivities(network, inputs, [labels])
    step = 1e-6
    for x, label, found in zip(inputs, labels, together, strict=True):
        basis = step * torch.eye(x.numel(), dtype=torch.float64).view(-1, *x.shape)
        with torch.no_grad():
            rise = network(x + basis)[:, label] - network(x - basis)[:, label]
        assert found.item() == pytest.approx((rise / (2 * step)).square().sum().item(), rel=1e-4)


def test_every_other_class_is_drawn_and_never_the_own() -> None:
    labels = torch.arange(4).repeat(100)
    drawn = mu_mis.draw_other_classes(labels, 4, seeded(0))
    assert {(a, b) for a, b in zip(labels.tolist(), drawn.tolist(), strict=True)} == {
        (a, b) for a in range(4) for b in range(4) if a != b
    }


def test_the_class_is_forgotten(task: Task) -> None:
    settings = replace(mu_mis.SETTINGS, rate=0.1, delta=10.0, epochs=60)
    (result,) = mu_mis.unlearn(task, settings)
    a_df, a_dr = accuracies(result.network)
    assert a_df < 5
    assert a_dr > 90


def test_it_stops_by_the_sensitivity_of_the_other_classes(task: Task) -> None:
    def images(delta: float) -> int:
        counts: list[int] = []
        forget = CountingLoader(
            task.forget.pixels, task.forget.labels, UNIT, count_images=counts.append
        )
        settings = replace(mu_mis.SETTINGS, rate=0.003, delta=delta, epochs=10)
        list(mu_mis.unlearn(replace(task, forget=forget), settings))
        return sum(counts)

    early, late, never = images(1.05), images(1.5), images(1e9)
    assert 2 * len(task.forget) < early < late < never == 11 * len(task.forget)
