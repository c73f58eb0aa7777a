"""The head's row of the class: where it is put, and that nothing else moves."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pbu_cli.head_row import HeadRow, level
from pbu_cli.objective import log_odds

FORGOTTEN = torch.tensor([False, True, False])


def test_at_the_level_the_mean_log_odds_are_the_goal():
    answers = torch.randn(20, 3)
    answers[:, 1] = level(answers, FORGOTTEN, tau=1e-3)
    assert log_odds(answers, FORGOTTEN).mean().item() == pytest.approx(math.log(1e-3 / 0.999))


def test_several_classes_have_the_goal_together():
    both = torch.tensor([True, True, False])
    answers = torch.randn(20, 3)
    answers[:, :2] = level(answers, both, tau=1e-3)
    assert log_odds(answers, both).mean().item() == pytest.approx(math.log(1e-3 / 0.999))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("head", ["linear", "convolution"])
def test_the_logit_at_the_mean_is_the_level_and_other_rows_stay(head, bias):
    layer = nn.Linear(4, 3, bias) if head == "linear" else nn.Conv2d(4, 3, 2, bias=bias)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    row, mean = HeadRow(layer, FORGOTTEN), torch.rand(4)
    row.withdraw(mean, torch.tensor(-6.0))
    x = mean[None] if head == "linear" else mean[None, :, None, None].expand(1, 4, 2, 2)
    assert layer(x).flatten()[1].item() == pytest.approx(-6, rel=1e-5)
    assert row.changes.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(layer.get_parameter(name)[~FORGOTTEN], value[~FORGOTTEN])
    row.restore()
    assert all(torch.equal(p, before[name]) for name, p in layer.named_parameters())


def test_it_is_where_training_without_the_class_takes_it():
    """Cross-entropy by gradient descent on features of which none is of the class."""
    torch.manual_seed(0)
    labels = torch.arange(400) % 2 * 2  # 0 and 2, never 1
    features = F.relu(torch.randn(3, 16)[labels] + 0.5 * torch.randn(400, 16))
    layer = nn.Linear(16, 3)
    descent = torch.optim.SGD(layer.parameters(), 0.1, weight_decay=1e-3)
    for _ in range(3000):
        descent.zero_grad()
        F.cross_entropy(layer(features), labels).backward()
        descent.step()
    learnt = torch.cat([layer.weight[1], layer.bias[1:2]]).detach()
    mean = features.mean(dim=0)
    HeadRow(layer, FORGOTTEN).withdraw(mean, (mean @ learnt[:-1]) + learnt[-1])
    ours = torch.cat([layer.weight[1], layer.bias[1:2]]).detach()
    assert F.cosine_similarity(ours, learnt, dim=0) > 0.9
    assert ours.norm().item() == pytest.approx(learnt.norm().item(), rel=0.15)


@pytest.mark.parametrize(
    "layer", [torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(4, 5)]
)
def test_a_weight_that_is_computed_or_gives_no_logits_stays(layer):
    before, row = layer(torch.ones(1, 4)), HeadRow(layer, FORGOTTEN)
    row.withdraw(torch.ones(4), torch.tensor(-6.0))
    assert row.changes == {}
    assert torch.equal(layer(torch.ones(1, 4)), before)
