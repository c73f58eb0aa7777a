"""Retraining without the class."""

from __future__ import annotations

import torch

from pbu_cli.benchmark.methods.task import Task
from pbu_cli.benchmark.training import train
from tests.benchmark.methods.noisy_patterns import (
    RECIPE,
    accuracies,
    build_untrained,
    results_of,
    seeded,
)


def test_a_retrained_network_never_predicts_the_class(task: Task) -> None:
    (result,) = results_of(task, "retrain")
    a_df, a_dr = accuracies(result.network)
    assert a_df == 0
    assert a_dr > 98


def test_retraining_is_the_recipe_without_the_class(task: Task) -> None:
    (result,) = results_of(task, "retrain")
    by_hand = build_untrained(0)
    train(by_hand, task.retained, RECIPE, generator=seeded(0))
    for one, other in zip(result.network.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(one, other)
