"""Membership inference against formulas worked out class by class, and on made-up networks."""

import math

import pytest
import torch

from pbu_cli.audit.membership_inference import advantage, attack, signals


def by_hand(z, label):
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


def test_signals_are_their_formulas():
    logits = 3 * torch.randn(30, 6, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(30) % 6
    found = signals(logits, labels)
    for n in range(30):
        wanted = by_hand(logits[n].tolist(), int(labels[n]))
        for name, value in wanted.items():
            assert found[name][n].item() == pytest.approx(value, rel=1e-9), name


def test_signals_stay_exact_where_the_probability_rounds_to_one():
    """z = (60, 0), label 1: 1 - p_0 = e^-60, so modified entropy = -60 + p_0 (-60)."""
    found = signals(torch.tensor([[60.0, 0.0]]), torch.tensor([1]))
    assert found["modified entropy"].item() == pytest.approx(-120)


def test_a_masked_logit_is_a_finite_loss():
    found = signals(torch.tensor([[-math.inf, 1.0, 0.0]]), torch.tensor([0]))
    assert all(bool(value.isfinite()) for value in found.values())


def test_answers_that_know_their_members_give_them_away_in_both_directions():
    generator = torch.Generator().manual_seed(1)
    labels = torch.zeros(300, dtype=torch.long)
    plain = torch.randn(300, 4, generator=generator)
    surer = torch.randn(300, 4, generator=generator) + torch.tensor([4.0, 0, 0, 0])
    there, back = attack(surer, labels, plain, labels), attack(plain, labels, surer, labels)
    for name in there:
        assert there[name].value > 0.3
        assert there[name].value == pytest.approx(back[name].value, abs=0.02)
    assert there["loss"].auc > 0.8
    assert back["loss"].auc < 0.2


def test_equal_answers_give_nothing_away_and_zero_is_in_the_interval():
    generator = torch.Generator().manual_seed(2)
    members, others = (torch.randn(k, 5, generator=generator) for k in (900, 400))
    found = attack(members, torch.zeros(900).long(), others, torch.zeros(400).long())
    for one in found.values():
        assert one.value < 0.06
        assert one.interval[0] == 0


def test_the_larger_group_is_cut_to_the_smaller_one():
    logits = torch.randn(50, 3)
    labels = torch.zeros(50).long()
    assert attack(logits, labels, logits[:19], labels[:19]) is None
    assert attack(logits, labels, logits[:20], labels[:20]) is not None


def test_the_interval_folds_at_half():
    scores = torch.arange(100.0)
    assert advantage(scores, scores).interval[0] == 0.0
    below = advantage(scores, scores + 40)
    assert 0 < below.interval[0] < below.value < below.interval[1]
    assert below.auc < 0.5
