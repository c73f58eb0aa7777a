"""The forget images and their copies."""

from __future__ import annotations

import pytest
import torch

from pbu_cli.data.augmentation import recognised_mirrored, shifted
from pbu_cli.settings import Preprocessing
from pbu_cli.unlearning.forget_set import ForgetSet

FORGOTTEN = torch.tensor([False, True, False])
UNIT = Preprocessing((2, 2), (0.0,), (1 / 255,))


def images(features: torch.Tensor | None = None) -> ForgetSet:
    pixels = torch.arange(12, dtype=torch.uint8).reshape(3, 1, 2, 2)
    labels = torch.ones(3, dtype=torch.long)
    return ForgetSet(pixels, labels, FORGOTTEN, UNIT, torch.eye(3), features)


def test_what_stability_holds_on_to_is_the_mean_of_both_answers():
    both = images(torch.randn(3, 5)).with_mirrored(torch.randn(3, 5), torch.zeros(3, 3))
    assert len(both) == 6
    assert torch.equal(both.answers, torch.eye(3).repeat(2, 1) / 2)
    assert both.labels.tolist() == [1] * 6


def test_mirror_images_join_as_features_where_the_images_are_features():
    features = torch.randn(3, 5)
    both = images(features).with_mirrored(-features, torch.eye(3))
    assert torch.equal(both.inputs(torch.arange(6)), torch.cat([features, -features]))


def test_what_was_imagined_joins_behind_them():
    features = torch.randn(3, 5)
    both = images(features).with_mirrored(-features, torch.eye(3))
    more = both.joined(torch.ones(2, 5), torch.zeros(2, 3))
    assert len(more) == 8
    assert torch.equal(more.inputs(torch.tensor([7])), torch.ones(1, 5))


@pytest.mark.parametrize(("mirrored", "share"), [([1, 1, 1, 0], 1.0), ([1, 0, 0, 1], 2 / 3)])
def test_the_share_is_of_what_is_recognised(mirrored: list[int], share: float):
    labels = torch.ones(4, dtype=torch.long)
    answers = torch.eye(3)[[1, 1, 1, 0]]
    assert recognised_mirrored(answers, torch.eye(3)[mirrored], labels) == pytest.approx(share)


def test_the_class_with_the_least_decides():
    labels = torch.tensor([0, 0, 0, 1])
    answers, mirrored = torch.eye(3)[labels], torch.eye(3)[[0, 0, 0, 2]]
    assert recognised_mirrored(answers, mirrored, labels) == 0


def test_nothing_recognised_is_no_symmetry():
    wrong, labels = torch.eye(3)[[0, 0]], torch.ones(2, dtype=torch.long)
    for mirrored in (wrong, torch.eye(3)[[1, 1]]):
        assert recognised_mirrored(wrong, mirrored, labels) == 0


def test_the_first_copies_are_the_images_and_the_others_are_moved_by_an_eighth_at_most():
    pixels = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)
    copies = shifted(pixels, 3, seed=0)
    assert torch.equal(copies[:4], pixels)
    assert not torch.equal(copies[4:8], pixels)
    padded = torch.nn.functional.pad(pixels.float(), (2, 2, 2, 2), mode="replicate").byte()
    places = [padded[:, :, r : r + 16, c : c + 16] for r in range(5) for c in range(5)]
    for number, copy in enumerate(copies[4:]):
        assert any(torch.equal(copy, place[number % 4]) for place in places)
