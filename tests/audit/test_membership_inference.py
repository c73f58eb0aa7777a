"""Membership inference against formulas worked out class by class, and on synthetic logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pbu_cli.audit.membership_inference import (
    advantage,
    membership_advantages,
    representation_advantage,
    signals,
)


def by_hand(z: Any, label: Any) -> Any:
    p = [math.exp(value) for value in z]
    p = [value / sum(p) for value in p]
    others = [q for y, q in enumerate(p) if y != label]
    return {
        "entropy": sum(q * math.log(q) for q in p),
        "confidence": max(p),
        "modified entropy": (1 - p[label]) * math.log(p[label])
        + sum(q * math.log(1 - q) for q in others),
        "loss": math.log(p[label]),
    }


def test_signals_are_their_formulas() -> None:
    logits = 3 * torch.randn(30, 6, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(30) % 6
    found = signals(logits, labels)
    for n in range(30):
        expected = by_hand(logits[n].tolist(), int(labels[n]))
        for name, value in expected.items():
            assert found[name][n].item() == pytest.approx(value, rel=1e-9), name


def test_signals_are_exact_where_the_probability_rounds_to_one() -> None:
    """z = (60, 0), label 1: 1 - p_0 = e^-60, so modified entropy = -60 + p_0 (-60)."""
    found = signals(torch.tensor([[60.0, 0.0]]), torch.tensor([1]))
    assert found["modified entropy"].item() == pytest.approx(-120)


def test_a_masked_logit_is_a_finite_loss() -> None:
    found = signals(torch.tensor([[-math.inf, 1.0, 0.0]]), torch.tensor([0]))
    assert all(bool(value.isfinite()) for value in found.values())


def test_the_advantage_is_the_same_for_more_and_for_less_confident_members() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.zeros(300, dtype=torch.long)
    plain = torch.randn(300, 4, generator=generator)
    confident = torch.randn(300, 4, generator=generator) + torch.tensor([4.0, 0, 0, 0])
    more = membership_advantages(confident, labels, plain, labels)
    less = membership_advantages(plain, labels, confident, labels)
    for name in more:
        assert more[name].value > 0.3
        assert more[name].value == pytest.approx(less[name].value, abs=0.02)
    assert more["loss"].auc > 0.8
    assert less["loss"].auc < 0.2


def test_logits_without_information_have_zero_in_the_interval() -> None:
    generator = torch.Generator().manual_seed(2)
    members, others = (torch.randn(k, 5, generator=generator) for k in (900, 400))
    found = membership_advantages(members, torch.zeros(900).long(), others, torch.zeros(400).long())
    for one in found.values():
        assert one.value < 0.06
        assert one.interval[0] == 0


def test_the_larger_group_is_cut_to_the_smaller_one() -> None:
    logits = torch.randn(50, 3)
    labels = torch.zeros(50).long()
    assert membership_advantages(logits, labels, logits[:19], labels[:19]) is None
    assert membership_advantages(logits, labels, logits[:20], labels[:20]) is not None


def test_the_interval_is_folded_at_an_auc_of_half() -> None:
    scores = torch.arange(100.0)
    assert advantage(scores, scores).interval[0] == 0.0
    below = advantage(scores, scores + 40)
    assert 0 < below.interval[0] < below.value < below.interval[1]
    assert below.auc < 0.5


def test_features_that_tell_members_apart_do_so_and_others_do_not() -> None:
    generator = torch.Generator().manual_seed(3)
    plain, other = torch.randn(2, 200, 5, generator=generator)
    apart = representation_advantage(other + torch.tensor([3.0, 0, 0, 0, 0]), plain)
    same = representation_advantage(other, plain)
    assert apart is not None
    assert same is not None
    assert apart.value > 0.45
    assert same.value < 0.1
    assert representation_advantage(plain[:19], other) is None


def test_both_groups_of_features_are_cut_to_the_same_size() -> None:
    generator = torch.Generator().manual_seed(4)
    plain = torch.randn(400, 3, generator=generator)
    found = representation_advantage(plain[:30], plain[30:])
    assert found is not None
    assert found.value < 0.25
