"""Two teachers: the loss, and where it moves the student."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pbu_cli.benchmark.methods.retained_images import bad_teaching
from pbu_cli.benchmark.methods.task import Task
from tests.benchmark.methods.noisy_patterns import accuracies


def test_the_loss_is_its_formula_on_two_classes() -> None:
    def kl(p: float, q: float) -> float:
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    student, good, bad = (
        torch.tensor([[logit(p), 0.0] for p in two]) for two in ([0.9, 0.6], [0.8, 0.7], [0.5, 0.4])
    )
    is_forget = torch.tensor([True, False])
    loss = bad_teaching.teaching_loss(student, good, bad, is_forget)
    assert loss.item() == pytest.approx((kl(0.5, 0.9) + kl(0.7, 0.6)) / 2, rel=1e-5)


def test_the_student_moves_towards_the_bad_teacher_on_the_forget_images_alone(task: Task) -> None:
    settings = replace(bad_teaching.SETTINGS, rate=3e-3, epochs=20, share=1.0)
    (result,) = bad_teaching.unlearn(task, settings)
    a_df, a_dr = accuracies(result.network)
    assert a_df < 50
    assert a_dr > 95
