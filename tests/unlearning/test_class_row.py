"""The head's row of the class: where it is moved to, and that nothing else moves."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pbu_cli.unlearning.class_row import ClassRow, target_offset
from pbu_cli.unlearning.objective import discriminant, log_odds

FORGOTTEN = torch.tensor([False, True, False])


def test_at_the_target_offset_the_mean_log_odds_are_the_goal() -> None:
    logits = torch.randn(20, 3)
    logits[:, 1] = logits.mean(dim=1) + target_offset(logits, FORGOTTEN, goal=-7.0)
    assert log_odds(logits, FORGOTTEN).mean().item() == pytest.approx(-7.0)


def test_several_classes_reach_the_goal_together() -> None:
    both = torch.tensor([True, True, False])
    logits = torch.randn(20, 3)
    logits[:, :2] = logits.mean(dim=1, keepdim=True) + target_offset(logits, both, goal=-7.0)
    assert log_odds(logits, both).mean().item() == pytest.approx(-7.0)


def row_of(layer: nn.Module, features: torch.Tensor) -> ClassRow:
    """The row of a layer that gives the logits of these features."""
    x = features if not isinstance(layer, nn.Conv2d) else features[:, :, None, None]
    with torch.no_grad():
        return ClassRow(layer, "", FORGOTTEN, features, layer(x).flatten(1))


def rows(layer: nn.Linear) -> torch.Tensor:
    """Weight and bias, [c, d + 1]."""
    return torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("head", ["linear", "convolution"])
def test_the_logit_at_the_means_has_the_offset_and_other_rows_stay(head: str, bias: bool) -> None:
    layer = nn.Linear(9, 3, bias) if head == "linear" else nn.Conv2d(9, 3, 1, bias=bias)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    features = 20 * torch.rand(6, 9)
    row, means = row_of(layer, features), features[:2]
    x = means if head == "linear" else means[:, :, None, None]
    middle = layer(x).flatten(1).mean(dim=1)
    row.apply(means, means[0], torch.tensor(-6.0))
    assert (layer(x).flatten(1)[:, 1] - middle).tolist() == pytest.approx([-6, -6], rel=0.03)
    assert row.changes.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(layer.get_parameter(name)[~FORGOTTEN], value[~FORGOTTEN])
    row.undo()
    assert all(torch.equal(p, before[name]) for name, p in layer.named_parameters())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("share", "others"), [(0.5, -12), (0.3, -20), (0.01, -24), (-1, -24), (1, -6), (2, -6)]
)
def test_the_offset_holds_for_the_classs_images_and_the_others_are_lower(
    bias: bool, share: float, others: float
) -> None:
    """Lower by the ratio of their features along the mean of the others, up to four times, and
    never higher."""
    layer, mean = nn.Linear(9, 3, bias), 20 * torch.rand(1, 9)
    own = share * mean[0] + (share - 1) * mean[0] / (mean @ mean.T).squeeze() * bias
    across = torch.randn(9)
    own = own + across - (across @ mean[0]) / (mean @ mean.T).squeeze() * mean[0]
    at = torch.stack([mean[0], own])
    middle = layer(at).mean(dim=1)
    row_of(layer, torch.rand(6, 9)).apply(mean, own, torch.tensor(-6.0))
    found = (layer(at)[:, 1] - middle).tolist()
    assert found[0] == pytest.approx(others, rel=0.03)
    assert found[1] == pytest.approx(others * share, rel=0.03, abs=0.05)


def test_the_row_is_as_short_as_possible() -> None:
    """Against the least-norm solution of the two equations, from the mean of the rows."""
    layer, features = nn.Linear(9, 3), 20 * torch.rand(6, 9)
    middle = rows(layer).mean(dim=0)
    row_of(layer, features).apply(features[:2], features[0], torch.tensor(-6.0))
    equations = torch.cat([features[:2], torch.ones(2, 1)], dim=1)
    least = torch.linalg.pinv(equations) @ torch.full((2,), -6.0)
    assert (rows(layer)[1] - middle - least).norm() < 0.03 * least.norm()


@pytest.mark.parametrize("bias", [True, False])
def test_moving_all_rows_alike_makes_no_difference(bias: bool) -> None:
    """Softmax does not depend on it, so the result may not either."""
    one, features = nn.Linear(9, 3, bias), torch.rand(6, 9)
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.weight.add_(torch.randn(9))
        if bias:
            other.bias.add_(20)
    for layer in (one, other):
        offset = target_offset(layer(features).detach(), FORGOTTEN, goal=-9.0)
        row_of(layer, features).apply(features[:2], features[0], offset)
    probabilities = [layer(features).softmax(1) for layer in (one, other)]
    assert torch.allclose(probabilities[0], probabilities[1], atol=1e-5)


def test_logits_far_apart_push_the_row_no_further_than_the_mean_of_all() -> None:
    layer, features = nn.Linear(9, 3), torch.rand(6, 9)
    offset = target_offset(torch.tensor([[0.0, 0.0, 60.0]]), FORGOTTEN, goal=-9.0)
    assert offset > 0
    middle = rows(layer).mean(dim=0)
    row_of(layer, features).apply(features[:2], features[0], offset)
    assert torch.allclose(rows(layer)[1], middle)


def test_several_rows_move_alike() -> None:
    layer, features = nn.Linear(9, 4), 20 * torch.rand(6, 9)
    gone = torch.tensor([False, True, True, False])
    row = ClassRow(layer, "", gone, features, layer(features).detach())
    middle = layer(features[:2]).mean(dim=1, keepdim=True)
    row.apply(features[:2], features[0], torch.tensor(-6.0))
    apart = layer(features[:2])[:, gone] - middle
    assert torch.allclose(apart, torch.full((2, 2), -6.0), rtol=0.03)


def test_without_a_bias_features_of_length_1_reach_the_offset_too() -> None:
    layer, features = nn.Linear(9, 3, bias=False), F.normalize(torch.rand(6, 9))
    middle = layer(features[:1])[0].mean()
    row_of(layer, features).apply(features[:1].expand(2, 9), features[0], torch.tensor(-6.0))
    assert (layer(features[:1])[0, 1] - middle).item() == pytest.approx(-6, rel=0.03)


def test_a_row_whose_weight_another_module_shares_stays() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(4, 3))
    model[1].weight = model[0].weight
    features = torch.randn(6, 4)
    assert ClassRow(model, "1", FORGOTTEN, features, model[1](features)).changes == {}


@pytest.mark.parametrize("bias", [True, False])
def test_means_of_zero_or_the_same_mean_twice_leave_the_row_finite(bias: bool) -> None:
    for means in (torch.zeros(2, 4), torch.ones(2, 4)):
        layer, features = nn.Linear(4, 3, bias), torch.randn(6, 4)
        row_of(layer, features).apply(means, means[0], torch.tensor(-6.0))
        assert layer(features).abs().max() < 30


def test_the_row_is_where_training_without_the_class_takes_it() -> None:
    """Gradient descent on the cross-entropy, with no image of the class."""
    torch.manual_seed(0)
    labels = torch.arange(400) % 2 * 2  # 0 and 2, never 1
    features = F.relu(torch.randn(3, 16)[labels] + 0.5 * torch.randn(400, 16))
    layer = nn.Linear(16, 3)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, weight_decay=1e-3)
    for _ in range(3000):
        optimizer.zero_grad()
        F.cross_entropy(layer(features), labels).backward()
        optimizer.step()
    middle = rows(layer).mean(dim=0)
    learnt = rows(layer)[1] - middle
    mean = features.mean(dim=0)
    offset_there = mean @ learnt[:-1] + learnt[-1]
    row_of(layer, features).apply(mean.expand(2, 16), mean, offset_there)
    found = rows(layer)[1] - middle
    assert F.cosine_similarity(found, learnt, dim=0) > 0.9
    assert found.norm().item() == pytest.approx(learnt.norm().item(), rel=0.15)


def test_a_log_softmax_behind_the_layer_makes_no_difference() -> None:
    """Many networks that were trained with nll_loss end in one."""
    one, features = nn.Linear(9, 3), torch.rand(6, 9)
    other = copy.deepcopy(one)
    raw = one(features).detach()
    for layer, logits in ((one, raw), (other, raw.log_softmax(1))):
        row = ClassRow(layer, "", FORGOTTEN, features, logits)
        row.apply(features[:2], features[0], target_offset(logits, FORGOTTEN, goal=-9.0))
        assert row.changes.keys() == {"weight", "bias"}
    assert torch.allclose(one.weight, other.weight, atol=1e-5)


@pytest.mark.parametrize("what", ["computed", "no row a class", "cut off", "divided"])
def test_a_layer_that_does_not_give_the_logits_stays(what: str) -> None:
    layer, features = nn.Linear(4, 5 if what == "no row a class" else 3), torch.randn(6, 4)
    if what == "computed":
        layer = torch.nn.utils.parametrizations.weight_norm(layer)
    logits = layer(features).detach()
    logits = logits.relu() if what == "cut off" else logits
    logits = logits / 2 if what == "divided" else logits
    forgotten = torch.arange(logits.shape[1] if what != "no row a class" else 3) == 1
    row = ClassRow(layer, "", forgotten, features, logits[:, :3])
    before = layer(features)
    row.apply(torch.ones(2, 4), torch.ones(4), torch.tensor(-6.0))
    assert row.changes == {}
    assert torch.equal(layer(features), before)


def test_the_directions_that_the_retained_rows_read() -> None:
    """The row of the forgotten class is free, and so is what all rows share."""
    layer = nn.Linear(5, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4, 5) + torch.tensor([0.0, 0, 0, 0, 9]))
    gone = torch.arange(4) == 3
    features = torch.randn(20, 5)
    read = ClassRow(layer, "", gone, features, layer(features).detach()).read_directions()
    assert read is not None
    assert read.shape == (2, 5)
    assert torch.allclose(read @ read.T, torch.eye(2), atol=1e-5)
    free = torch.tensor([[0.0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 0, 0]])
    assert (read @ free.T).abs().max() < 1e-5


def test_a_single_retained_row_reads_nothing_and_keeps_nothing_apart() -> None:
    layer, features = nn.Linear(5, 2), torch.randn(20, 5)
    gone = torch.tensor([True, False])
    read = ClassRow(layer, "", gone, features, layer(features).detach()).read_directions()
    assert read is not None
    assert read.shape == (0, 5)
    assert discriminant(features[:9] @ read.T, features[9:] @ read.T)[1] == 0
