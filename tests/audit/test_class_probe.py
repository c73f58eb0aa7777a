"""The multinomial probe and the nearest class mean, on features whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pbu_cli.audit.class_probe import (
    MAX_CLASSES,
    MAX_RETAINED,
    _sample,
    class_probe,
    nearest_class_mean,
)

FOLDS = 5
Labelled = tuple[Tensor, Tensor]


def clusters(distance: float, seed: int = 0) -> tuple[Labelled, Labelled]:
    """40 forget images of class 2 and 60 retained ones of classes 0 and 1, in five dimensions.

    The forget images are `distance` away from class 0 and lie on it for 0.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.zeros(3, 5)
    centres[1, 0], centres[2, 1] = 8, distance
    labels = torch.cat([torch.full((40,), 2), torch.arange(60) % 2])
    features = centres[labels] + torch.randn(100, 5, generator=generator)
    return (features[:40], labels[:40]), (features[40:], labels[40:])


def test_a_class_apart_is_found_and_one_on_another_class_is_guessed() -> None:
    apart, same = (class_probe(*clusters(distance)) for distance in (8.0, 0.0))
    assert apart is not None
    assert same is not None
    assert apart.recall.value == apart.others.value == 100
    assert 20 < same.recall.value < 80
    assert same.others.value > 60  # class 1 is apart, and class 0 is guessed
    assert same.recall.interval[0] < same.recall.value < same.recall.interval[1]


def by_loops(forget: Labelled, retain: Labelled, seed: int) -> float:
    """The oracle: the distance of each image to each mean, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    folds = (torch.randperm(len(forget[1]), generator=generator) % FOLDS).tolist()
    right = 0
    for i, x in enumerate(forget[0]):
        distances = {}
        for c in {*forget[1].tolist(), *retain[1].tolist()}:
            images = [
                y
                for j, (y, label) in enumerate(zip(*forget, strict=True))
                if label == c and folds[j] != folds[i]
            ]
            images += [y for y, label in zip(*retain, strict=True) if label == c]
            distances[c] = float((torch.stack(images).mean(0) - x).norm())
        right += min(distances, key=lambda c: distances[c]) == forget[1][i]
    return 100 * right / len(forget[1])


@pytest.mark.parametrize("distance", [0.0, 1.0, 3.0])
def test_the_nearest_class_mean_is_the_nearest_of_all(distance: float) -> None:
    forget, retain = clusters(distance)
    found = nearest_class_mean(forget, retain, seed=3)
    assert found is not None
    assert found.value == pytest.approx(by_loops(forget, retain, 3))


def test_an_image_is_not_compared_with_a_mean_that_holds_it() -> None:
    """In many dimensions every image is near a mean that it is part of."""
    generator = torch.Generator().manual_seed(0)
    forget = torch.randn(20, 3000, generator=generator), torch.ones(20, dtype=torch.long)
    retain = torch.randn(20, 3000, generator=generator), torch.zeros(20, dtype=torch.long)
    found = nearest_class_mean(forget, retain)
    assert found is not None
    assert found.value < 70


def test_too_few_images_or_classes_have_no_value() -> None:
    forget, retain = clusters(3.0)
    few = forget[0][:19], forget[1][:19]
    assert class_probe(few, retain) is None
    assert nearest_class_mean(few, retain) is None
    one_class = retain[1] == 0
    assert class_probe(forget, (retain[0][one_class], retain[1][one_class])) is None
    rare = forget[1].clone()
    rare[:3] = 7  # a second forgotten class, of three images
    assert class_probe((forget[0], rare), retain) is None


def test_the_sample_is_bounded_and_has_as_many_images_of_each_class() -> None:
    labels = torch.arange(300).repeat_interleave(20)
    chosen = _sample(labels, seed=0)
    assert chosen is not None
    classes, counts = labels[chosen].unique(return_counts=True)
    assert len(classes) == MAX_CLASSES
    assert set(counts.tolist()) == {MAX_RETAINED // MAX_CLASSES}
    assert len(chosen.unique()) == len(chosen)
    again, other = _sample(labels, seed=0), _sample(labels, seed=1)
    assert again is not None
    assert other is not None
    assert torch.equal(chosen, again)
    assert not torch.equal(chosen, other)
