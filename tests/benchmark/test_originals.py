"""Originals: trained once, then read from disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pbu_cli.benchmark import originals
from pbu_cli.benchmark.protocol import BenchmarkPlan
from pbu_cli.errors import CheckpointError
from pbu_cli.io.safetensors_format import write


def test_originals_are_trained_once_and_come_back_bit_by_bit(
    plan: BenchmarkPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, cost, digest = originals.load_or_train(plan, 0, lambda images: None)
    assert cost.images == 8 * (400 - 400 % 32)  # incomplete batches are dropped

    def fail(*args: object, **named: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(originals, "train", fail)
    again, same, found = originals.load_or_train(plan, 0, lambda images: None)
    assert (same.seconds, same.images) == (cost.seconds, cost.images)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not again.training
    assert found == digest == originals.stored_digest(plan, 0)


@pytest.fixture
def trained(plan: BenchmarkPlan) -> Path:
    originals.load_or_train(plan, 0, lambda images: None)
    return plan.folder() / "original-seed0.safetensors"


def test_a_seed_without_an_original_has_no_digest(plan: BenchmarkPlan) -> None:
    assert originals.stored_digest(plan, 0) is None


def test_a_replaced_original_is_noticed(plan: BenchmarkPlan, trained: Path) -> None:
    other = plan.network.build_untrained(5)
    write(trained, dict(other.state_dict()), {"seconds": "1", "images": "1"})
    with pytest.raises(CheckpointError, match="tensors are others"):
        originals.stored_digest(plan, 0)
    with pytest.raises(CheckpointError, match="tensors are others"):
        originals.load_or_train(plan, 0, lambda images: None)


def test_an_original_of_an_older_version_is_not_used(plan: BenchmarkPlan, trained: Path) -> None:
    trained.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match="older version of pbu"):
        originals.stored_digest(plan, 0)


def test_a_changed_note_is_one_line(plan: BenchmarkPlan, trained: Path) -> None:
    place = trained.with_suffix(".json")
    place.write_text(json.dumps({**json.loads(place.read_text()), "seconds": 0.1}))
    with pytest.raises(CheckpointError, match="the file as pbu wrote it"):
        originals.load_or_train(plan, 0, lambda images: None)


def test_a_note_alone_is_what_a_killed_run_leaves(plan: BenchmarkPlan, trained: Path) -> None:
    """The original is trained again, unless cells are there that were computed from it."""
    before = originals.stored_digest(plan, 0)
    trained.unlink()
    assert originals.load_or_train(plan, 0, lambda images: None).digest == before
    trained.unlink()
    (plan.folder() / "seed0-class8-pbu.json").write_text("{}")
    with pytest.raises(CheckpointError, match="it is not there"):
        originals.load_or_train(plan, 0, lambda images: None)
