"""DELETE: the loss, and what it does to the class."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pbu_cli.benchmark.methods.forget_images import delete
from pbu_cli.benchmark.methods.task import Task
from tests.benchmark.methods.noisy_patterns import accuracies, running_mean_of


def test_the_loss_is_the_kl_divergence_from_the_masked_original() -> None:
    def logits(*probabilities: float) -> torch.Tensor:
        return torch.tensor([[math.log(p) for p in probabilities]])

    original, network = logits(0.2, 0.6, 0.2), logits(0.5, 0.3, 0.2)
    loss = delete.distillation_loss(network, original, torch.tensor([0]))
    by_hand = 0.75 * math.log(0.75 / 0.3) + 0.25 * math.log(0.25 / 0.2)
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_the_loss_is_least_at_the_masked_original() -> None:
    original = torch.tensor([[4.0, 1.0, 0.0]])
    masked = torch.tensor([[-50.0, 1.0, 0.0]])
    loss = delete.distillation_loss(masked, original, torch.tensor([0]))
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_the_class_is_forgotten(task: Task) -> None:
    (result,) = delete.unlearn(task, replace(delete.SETTINGS, rate=0.002, training_mode=False))
    a_df, a_dr = accuracies(result.network)
    assert a_df < 5
    assert a_dr > 90


def test_batchnorm_trains_only_in_training_mode(task: Task) -> None:
    for mode in (False, True):
        settings = replace(delete.SETTINGS, epochs=1, training_mode=mode)
        (result,) = delete.unlearn(task, settings)
        same = torch.equal(running_mean_of(result.network), running_mean_of(task.original))
        assert same is not mode
