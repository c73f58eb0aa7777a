"""The forget images, what joins them, and the order in which a run uses them."""

from __future__ import annotations

import math

import pytest
import torch

from pbu_cli.settings import Preprocessing, Schedule
from pbu_cli.unlearning.forget_set import ForgetSet, shuffled_batches

UNIT = Preprocessing((2, 2), (0.0,), (1 / 255,))


def images(
    features: torch.Tensor | None = None, forgotten: tuple[bool, ...] = (False, True, False)
) -> ForgetSet:
    pixels = torch.arange(12, dtype=torch.uint8).reshape(3, 1, 2, 2)
    labels = torch.ones(3, dtype=torch.long)
    return ForgetSet(pixels, labels, torch.tensor(forgotten), UNIT, torch.eye(3), features)


def test_stability_preserves_the_mean_of_the_logits_of_both() -> None:
    both = images(torch.randn(3, 5)).with_mirrored(torch.randn(3, 5), torch.zeros(3, 3))
    assert len(both) == 6
    assert torch.equal(both.logits, torch.eye(3).repeat(2, 1) / 2)
    assert both.labels.tolist() == [1] * 6


def test_mirrored_images_join_as_features() -> None:
    features = torch.randn(3, 5)
    both = images(features).with_mirrored(-features, torch.eye(3))
    assert torch.equal(both.inputs(torch.arange(6)), torch.cat([features, -features]))


def test_synthetic_inputs_join_after_the_mirrored_ones() -> None:
    features = torch.randn(3, 5)
    both = images(features).with_mirrored(-features, torch.eye(3))
    more = both.joined(torch.ones(2, 5), torch.zeros(2, 3))
    assert len(more) == 8
    assert torch.equal(more.inputs(torch.tensor([7])), torch.ones(1, 5))


@pytest.mark.parametrize("as_features", [False, True])
def test_joined_inputs_come_after_the_images_and_are_taken_as_they_are(as_features: bool) -> None:
    features = torch.randn(3, 1, 2, 2) if as_features else None
    alone = images(features, (False, True, True))
    everything = alone.inputs(torch.arange(3))
    inputs, logits = torch.randn(5, 1, 2, 2), torch.randn(5, 3)
    more = alone.joined(inputs, logits)
    assert len(more) == 8
    assert torch.equal(more.inputs(torch.arange(8)), torch.cat([everything, inputs]))
    assert torch.equal(more.logits[3:], logits)
    assert torch.equal(more.labels[3:], 1 + logits[:, 1:].argmax(dim=1))


@pytest.mark.parametrize(("count", "size"), [(10, 4), (3, 3), (8, 4)])
def test_every_epoch_takes_each_image_at_most_once(count: int, size: int) -> None:
    schedule = Schedule(steps=12, batch_size=4)
    batches = list(shuffled_batches(count, schedule, torch.device("cpu")))
    assert [len(batch) for batch in batches] == [size] * 12
    per_epoch = math.floor(count / size)
    for start in range(0, 12, per_epoch):
        epoch = torch.cat(batches[start : start + per_epoch])
        assert len(epoch.unique()) == len(epoch)
    again = list(shuffled_batches(count, schedule, torch.device("cpu")))
    assert all(torch.equal(one, other) for one, other in zip(batches, again, strict=True))
