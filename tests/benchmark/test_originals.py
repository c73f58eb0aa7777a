"""Originals: trained once, then read from disk."""

from __future__ import annotations

import pytest
import torch

from pbu_cli.benchmark import originals
from pbu_cli.benchmark.protocol import BenchmarkPlan


def test_originals_are_trained_once_and_come_back_bit_by_bit(
    plan: BenchmarkPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, cost = originals.load_or_train(plan, 0, lambda images: None)
    assert cost.images == 8 * (400 - 400 % 32)  # incomplete batches are dropped

    def fail(*args: object, **named: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(originals, "train", fail)
    again, same = originals.load_or_train(plan, 0, lambda images: None)
    assert (same.seconds, same.images) == (cost.seconds, cost.images)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not again.training
