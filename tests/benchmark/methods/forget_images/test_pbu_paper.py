"""The recipe of the paper's authors."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F

from pbu_cli.benchmark.methods.forget_images import pbu_paper
from pbu_cli.benchmark.methods.task import Task
from tests.benchmark.methods.noisy_patterns import head_of, results_of, running_mean_of


def test_five_epochs_are_reported_and_batchnorm_trains(task: Task) -> None:
    results = results_of(task, "pbu-paper")
    assert [r.stage for r in results] == [f"epoch {n}" for n in range(1, 6)]
    means = [running_mean_of(network) for network in (task.original, *(r.network for r in results))]
    moves = [(b - a).norm() for a, b in pairwise(means)]
    assert all(move > 0 for move in moves)


def test_the_first_step_is_adam_on_alpha_log_p(task: Task) -> None:
    """At theta* the gradient of both penalties is zero. Adam's first step is then the rate times
    the sign of the gradient of log P alone."""
    few = replace(task, forget=task.forget.subset(torch.arange(8)))
    settings = replace(pbu_paper.SETTINGS, epochs=1)
    (result,) = pbu_paper.unlearn(few, settings)
    by_hand = few.copy_original().train()
    (x, y) = next(few.forget.batches(8))
    F.cross_entropy(by_hand(x), y).neg().backward()
    moved = head_of(result.network).weight - head_of(task.original).weight
    gradient = head_of(by_hand).weight.grad
    assert gradient is not None
    clear = gradient.abs() > 1e-6
    assert clear.any()
    assert torch.allclose(moved[clear], -settings.rate * gradient.sign()[clear], rtol=1e-2)


def test_a_heavy_fisher_term_holds_the_weights_at_the_trained_ones(task: Task) -> None:
    def distance(**weights: float) -> float:
        settings = replace(pbu_paper.SETTINGS, **weights)  # type: ignore[arg-type]
        *_, last = pbu_paper.unlearn(task, settings)
        moved = head_of(last.network).weight - head_of(task.original).weight
        return moved.detach().norm().item()

    assert distance(beta=1e9, gamma=0) < 0.8 * distance(beta=0, gamma=0)
