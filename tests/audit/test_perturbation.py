"""The measures on noisy images against loops over single images, and what has no value."""

from __future__ import annotations

import math

import pytest
import torch

from pbu_cli.audit.perturbation import (
    COPIES,
    MAX_IMAGES,
    RADIUS,
    chosen_images,
    noisy_copies,
    over_unlearning,
    per_image,
    recognised,
    residual_knowledge,
)


def test_the_noise_moves_every_pixel_by_at_most_the_radius_and_stays_on_the_scale() -> None:
    pixels = torch.tensor([0, 3, 128, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    copies = torch.stack(list(noisy_copies(pixels, 500, RADIUS, seed=0)))
    moved = copies - pixels.float()
    assert copies.min() == 0
    assert copies.max() == 255
    assert moved.abs().max() <= 8 + 1e-4
    assert moved[:, 0, 1, 0].min() < -7.5
    assert moved[:, 0, 1, 0].max() > 7.5
    assert moved[:, 0, 1, 0].mean().abs() < 1
    assert pixels.tolist() == [[[[0, 3], [128, 255]]]]


def test_the_noise_of_an_image_does_not_depend_on_the_images_after_it() -> None:
    pixels = torch.randint(0, 256, (3, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    all_copies = list(noisy_copies(pixels.to(torch.uint8), 2, RADIUS, seed=5))
    first = list(noisy_copies(pixels[:1].to(torch.uint8), 2, RADIUS, seed=5))
    assert len(all_copies) == 6
    assert all(torch.equal(a, b) for a, b in zip(first, all_copies, strict=False))
    other = list(noisy_copies(pixels[:1].to(torch.uint8), 2, RADIUS, seed=6))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("gone", [[0], [1, 3]])
def test_over_unlearning_is_the_divergence_among_the_retained_classes(gone: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    z, w = (3 * torch.randn(6, 5, generator=generator).double() for _ in range(2))
    forgotten = torch.tensor([c in gone for c in range(5)])
    found = over_unlearning(w, z, forgotten)
    kept = [c for c in range(5) if c not in gone]
    for n in range(6):
        p = z[n, kept].softmax(0).tolist()
        q = w[n, kept].softmax(0).tolist()
        expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert found[n].item() == pytest.approx(expected, abs=1e-12)


def test_what_happens_to_the_forgotten_logit_is_no_over_unlearning() -> None:
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    forgotten = torch.tensor([False, True, False])
    masked = z.masked_fill(forgotten, -math.inf)
    assert over_unlearning(masked, z, forgotten).tolist() == [0, 0, 0, 0]
    assert over_unlearning(z, masked, forgotten).tolist() == [0, 0, 0, 0]


def test_shares_are_of_the_copies_of_each_image() -> None:
    logits = torch.eye(3)[[2, 0, 2, 1, 1, 1]]
    assert recognised(logits, torch.tensor([2, 1]), 3).tolist() == pytest.approx([2 / 3, 1])
    assert per_image(torch.tensor([1.0, 3, 5, 7]), 2).tolist() == [2, 6]


def test_residual_knowledge_is_the_ratio_of_the_means_with_a_finite_interval() -> None:
    shares = torch.tensor([1.0] * 10)
    rare = torch.tensor([0.25] + [0.0] * 9)
    found = residual_knowledge(shares, rare)
    assert found is not None
    value, (low, high) = found
    assert value == pytest.approx(40)
    assert low < value <= high <= COPIES * 10
    equal = residual_knowledge(rare, rare)
    assert equal is not None
    assert equal[0] == 1


def test_residual_knowledge_has_no_value_where_the_retrained_network_recognises_nothing() -> None:
    assert residual_knowledge(torch.ones(5), torch.zeros(5)) is None
    none_left = residual_knowledge(torch.zeros(5), torch.ones(5))
    assert none_left == (0, (0, 0))


def test_few_images_are_all_copied_and_many_are_drawn() -> None:
    assert chosen_images(7, seed=0).tolist() == list(range(7))
    many = chosen_images(1000, seed=0)
    assert len(many) == len(many.unique()) == MAX_IMAGES
    assert not torch.equal(many, chosen_images(1000, seed=1))
