"""Copies of images, and the share of mirrored images that a network recognises."""

from __future__ import annotations

import pytest
import torch

from pbu_cli.data.augmentation import augment, recognised_mirrored, shifted


@pytest.mark.parametrize(("mirrored", "share"), [([1, 1, 1, 0], 1.0), ([1, 0, 0, 1], 2 / 3)])
def test_the_share_is_relative_to_the_unmirrored_images_recognised(
    mirrored: list[int], share: float
) -> None:
    labels = torch.ones(4, dtype=torch.long)
    logits = torch.eye(3)[[1, 1, 1, 0]]
    assert recognised_mirrored(logits, torch.eye(3)[mirrored], labels) == pytest.approx(share)


def test_the_class_with_the_smallest_share_decides() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    logits, mirrored_logits = torch.eye(3)[labels], torch.eye(3)[[0, 0, 0, 2]]
    assert recognised_mirrored(logits, mirrored_logits, labels) == 0


def test_the_share_is_zero_where_no_unmirrored_image_is_recognised() -> None:
    wrong, labels = torch.eye(3)[[0, 0]], torch.ones(2, dtype=torch.long)
    for mirrored_logits in (wrong, torch.eye(3)[[1, 1]]):
        assert recognised_mirrored(wrong, mirrored_logits, labels) == 0


def test_the_first_copies_are_the_images_and_the_others_are_shifted_by_an_eighth_at_most() -> None:
    pixels = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)
    copies = shifted(pixels, 3, seed=0)
    assert torch.equal(copies[:4], pixels)
    assert not torch.equal(copies[4:8], pixels)
    padded = torch.nn.functional.pad(pixels.float(), (2, 2, 2, 2), mode="replicate").byte()
    places = [padded[:, :, r : r + 16, c : c + 16] for r in range(5) for c in range(5)]
    for number, copy in enumerate(copies[4:]):
        assert any(torch.equal(copy, place[number % 4]) for place in places)


def test_augmented_images_are_exactly_the_shifted_and_mirrored_ones() -> None:
    """The slow oracle crops the padded image at every position, mirrored and not."""
    image = torch.arange(1, 13, dtype=torch.uint8).view(1, 1, 3, 4)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    possible = {
        tuple(piece.flatten().tolist())
        for row in range(3)
        for column in range(3)
        for crop in [padded[0, 0, row : row + 3, column : column + 4]]
        for piece in (crop, crop.flip(1))
    }
    seen = augment(image.expand(500, -1, -1, -1), 1, True, torch.Generator().manual_seed(0))
    assert seen.dtype == torch.uint8
    assert {tuple(one.flatten().tolist()) for one in seen} == possible


def test_all_channels_of_an_image_are_shifted_together() -> None:
    image = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    both = torch.cat([image, image + 100], dim=1).expand(50, -1, -1, -1)
    seen = augment(both, 1, True, torch.Generator().manual_seed(0)).int()
    inside = seen[:, 1] > 0
    assert torch.equal((seen[:, 1] - seen[:, 0])[inside], torch.full_like(seen[:, 1], 100)[inside])
