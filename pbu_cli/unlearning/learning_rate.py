"""The learning rate: calibrated on the forget images, then scheduled by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pbu_cli.settings import Schedule
from pbu_cli.unlearning import objective
from pbu_cli.unlearning.forget_set import ForgetSet


def calibrated_rate(
    model: nn.Module,
    images: ForgetSet,
    theta: Sequence[Tensor],
    factors: list[float],
    schedule: Schedule,
    *,
    from_even_odds: bool = False,
) -> float:
    """The learning rate with which Adam's first `steps_to_goal` steps would reach the goal.

    A step of sign descent with the rate r lowers mean(o), the mean log odds of the forgotten
    classes, by r * sum_i f_i |d mean(o) / d theta_i|, with f_i the factor of theta_i's layer. So

        r = mean relu(o - goal) / (steps_to_goal * sum_i f_i |d mean(o) / d theta_i|).

    The numerator is a mean over all forget images, the gradient is one over at most
    `schedule.window` of them. The rate is 0 if everything is forgotten already. With
    `from_even_odds` the rate is at least that of even odds (o = 0): where the logits have
    forgotten the class, the features may still hold it.
    """
    odds = objective.log_odds(images.logits, images.forgotten)
    goal = schedule.goal(len(images.forgotten))
    excess = objective.excess_odds(odds, goal).item()
    if from_even_odds:
        excess = max(excess, -goal)
    count = min(len(images), schedule.window)
    sample = torch.linspace(0, len(images) - 1, count, device=images.labels.device).round().long()
    gradients = [torch.zeros_like(parameter) for parameter in theta]
    for index in sample.split(schedule.batch_size):
        odds = objective.log_odds(model(images.inputs(index)), images.forgotten)
        of_batch = torch.autograd.grad(odds.sum() / count, theta, materialize_grads=True)
        torch._foreach_add_(gradients, of_batch)
    slope = sum(f * g.abs().sum().item() for f, g in zip(factors, gradients, strict=True))
    return excess / (schedule.steps_to_goal * slope) if slope > 0 else 0.0


def rate_share(step: int, schedule: Schedule) -> float:
    """The learning rate at a step, as a share of the full rate.

    It rises linearly to 1 in the first `warm_up` steps, stays there until the share `hold` of all
    steps, and then falls linearly to `last_rate`.

    >>> schedule = Schedule(steps=100, warm_up=10, hold=0.6, last_rate=0.0)
    >>> [rate_share(step, schedule) for step in (1, 10, 60, 80, 100)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    falls_after = round(schedule.hold * schedule.steps)
    if step <= schedule.warm_up:
        return step / schedule.warm_up
    if step <= falls_after:
        return 1.0
    return 1 - (1 - schedule.last_rate) * (step - falls_after) / (schedule.steps - falls_after)
