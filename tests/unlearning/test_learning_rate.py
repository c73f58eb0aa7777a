"""The calibrated learning rate against its formula, and its course over the steps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from pbu_cli.settings import Preprocessing, Schedule
from pbu_cli.unlearning.forget_set import ForgetSet
from pbu_cli.unlearning.learning_rate import calibrated_rate, rate_share
from pbu_cli.unlearning.objective import log_odds

FORGOTTEN = torch.tensor([False, True, False])
SCHEDULE = Schedule(tau=0.01, steps_to_goal=10.0, window=256, batch_size=3)


def prepared(count: int = 7, *, bias: float = 0.0) -> tuple[nn.Linear, ForgetSet]:
    """A linear model and vectors that it takes; `bias` is added to the forgotten logit."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(count, 4)
    with torch.no_grad():
        model.bias[1] += bias
    pixels = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    labels = torch.ones(count, dtype=torch.long)
    unit = Preprocessing((2, 2), (0.0,), (1.0,))
    return model, ForgetSet(pixels, labels, FORGOTTEN, unit, model(x).detach(), x)


@pytest.mark.parametrize("factors", [[1.0, 1.0], [1.0, 200.0]])
def test_it_is_that_of_the_formula(factors: list[float]) -> None:
    model, images = prepared()
    theta = list(model.parameters())
    odds = log_odds(model(images.inputs(torch.arange(7))), FORGOTTEN)
    gradients = torch.autograd.grad(odds.mean(), theta)
    slope = sum(f * g.abs().sum().item() for f, g in zip(factors, gradients, strict=True))
    excess = (odds - math.log(0.01 / 0.99)).relu().mean().item()
    found = calibrated_rate(model, images, theta, factors, SCHEDULE)
    assert found == pytest.approx(excess / (10 * slope), rel=1e-5)


def test_the_gradient_is_of_at_most_a_window_of_images() -> None:
    model, images = prepared()
    seen: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    calibrated_rate(
        model, images, list(model.parameters()), [1.0, 1.0], replace(SCHEDULE, window=5)
    )
    handle.remove()
    assert seen == [3, 2]


def test_it_is_zero_where_all_is_forgotten_unless_it_counts_from_even_odds() -> None:
    model, images = prepared(bias=-50.0)
    theta = list(model.parameters())
    assert calibrated_rate(model, images, theta, [1.0, 1.0], SCHEDULE) == 0
    from_even = calibrated_rate(model, images, theta, [1.0, 1.0], SCHEDULE, from_even_odds=True)
    odds = log_odds(model(images.inputs(torch.arange(7))), FORGOTTEN)
    gradients = torch.autograd.grad(odds.mean(), theta)
    slope = sum(gradient.abs().sum().item() for gradient in gradients)
    assert from_even == pytest.approx(math.log(0.99 / 0.01) / (10 * slope), rel=1e-5)


def test_it_is_zero_where_no_parameter_matters() -> None:
    model, images = prepared()
    assert calibrated_rate(model, images, [nn.Parameter(torch.ones(2))], [1.0], SCHEDULE) == 0


def test_the_share_rises_holds_and_falls() -> None:
    schedule = Schedule(steps=100, warm_up=10, hold=0.5, last_rate=0.2)
    shares = [rate_share(step, schedule) for step in range(1, 101)]
    assert shares[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert shares[10:50] == [1.0] * 40
    assert shares[49:] == sorted(shares[49:], reverse=True)
    assert shares[-1] == pytest.approx(0.2)
