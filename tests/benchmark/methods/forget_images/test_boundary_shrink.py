"""Boundary Shrink: the nearest wrong labels, and what training on them does."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from pbu_cli.benchmark.methods.forget_images import boundary_shrink
from pbu_cli.benchmark.methods.task import Task
from pbu_cli.settings import Preprocessing
from tests.benchmark.methods.noisy_patterns import FORGET_CLASS, UNIT, accuracies


def two_pixels(*rows: tuple[float, float]) -> nn.Module:
    """The logits are these rows times the two pixels in [0, 1], of which 1/2 is subtracted."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, len(rows), bias=False))
    network[1].weight.data = torch.tensor(rows)
    return network


def test_the_label_is_that_of_the_nearest_boundary() -> None:
    """Class 0 wins right and above of the middle. The image lies just right of the boundary to
    class 1 and far above that to class 2."""
    network = two_pixels((1.0, 1.0), (-1.0, 1.0), (1.0, -1.0))
    centred = Preprocessing((1, 2), (0.5,), (1.0,))
    image = torch.tensor([[[[0.05, 0.4]]]])
    assert network(image).argmax() == 0
    found = boundary_shrink.nearest_labels(network, image, torch.tensor([0]), centred, 0.1)
    assert found.tolist() == [1]


def test_a_wrong_label_is_found_where_the_step_stays_inside(task: Task) -> None:
    inputs, labels = next(task.forget.batches(100))
    for epsilon in (0.0, 0.1):
        found = boundary_shrink.nearest_labels(task.original, inputs, labels, UNIT, epsilon)
        assert (found != FORGET_CLASS).all()


def test_without_a_step_the_label_is_the_second_largest_logit(task: Task) -> None:
    inputs, labels = next(task.forget.batches(100))
    with torch.no_grad():
        second = task.original(inputs).topk(2).indices
    expected = torch.where(second[:, 0] == labels, second[:, 1], second[:, 0])
    found = boundary_shrink.nearest_labels(task.original, inputs, labels, UNIT, 0.0)
    assert torch.equal(found, expected)


def test_the_class_is_forgotten(task: Task) -> None:
    settings = replace(boundary_shrink.SETTINGS, rate=1e-3, training_mode=False)
    (result,) = boundary_shrink.unlearn(task, settings)
    a_df, a_dr = accuracies(result.network)
    assert a_df < 5
    assert a_dr > 90
