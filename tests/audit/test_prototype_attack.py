"""The prototypical relearning attack against a search of all biases, and on made-up features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pbu_cli.audit.prototype_attack import (
    SCALES,
    Scored,
    best_a_df,
    prototype_attack,
    row_length,
)

FORGOTTEN = torch.tensor([True, False, False])


def made_up(separate: float, seed: int = 0) -> tuple[Scored, Scored]:
    """60 forget images of class 0 and 90 retained ones of classes 1 and 2, which the head knows.

    `separate` is the distance of the forget images from the line on which the others lie, and for
    0 they lie on class 1.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(150, 3, generator=generator)
    centres = torch.tensor([[3.0, 0, 0], [0, 3, 0], [1.5, 1.5, separate]])
    if not separate:
        centres[2] = centres[0]
    which = torch.cat([torch.full((60,), 2), torch.arange(90) % 2])
    features = (centres[which] + 0.4 * noise).clamp_min(0)
    head = torch.tensor([[0.0, 0, -1], [1, 0, 0], [0, 1, 0]])
    labels = torch.cat([torch.zeros(60, dtype=torch.long), 1 + torch.arange(90) % 2])
    all_images = Scored(features, features @ head.T, labels)
    return all_images.only(labels == 0), all_images.only(labels > 0)


def oracle(forget: Scored, retain: Scored, row: Tensor, floor: float) -> float:
    best = 0.0
    for scale in SCALES:
        for t in torch.linspace(-60, 30, 2001).tolist():
            rates = []
            for images in (forget, retain):
                logits = images.logits.clone()
                logits[:, 0] = scale * (images.features @ row) + t
                rates.append(100 * (logits.argmax(1) == images.labels).double().mean().item())
            if rates[1] >= floor - 1e-9:
                best = max(best, rates[0])
    return best


@pytest.mark.parametrize("floor", [50.0, 80.0, 95.0, 100.0])
def test_the_best_row_is_the_best_of_all_scales_and_biases(floor: float) -> None:
    forget, retain = made_up(0.3)
    row = forget.features[:5].mean(dim=0)
    found = best_a_df(forget, retain, row[None], FORGOTTEN, floor)
    assert found == pytest.approx(oracle(forget, retain, row, floor))


def test_a_class_with_features_of_its_own_comes_back_and_another_does_not() -> None:
    apart, among = (
        prototype_attack(*made_up(separate), FORGOTTEN, 1.0, held=5) for separate in (4.0, 0.0)
    )
    assert apart is not None
    assert among is not None
    assert apart.value == 100
    assert among.value < 40
    assert among.interval[0] <= among.value <= among.interval[1]


def test_what_is_in_the_old_row_does_not_matter() -> None:
    forget, retain = made_up(1.0)
    changed = [Scored(one.features, one.logits.clone(), one.labels) for one in (forget, retain)]
    for one in changed:
        one.logits[:, 0] = -torch.inf
    plain = prototype_attack(forget, retain, FORGOTTEN, 1.0, held=5)
    masked = prototype_attack(changed[0], changed[1], FORGOTTEN, 1.0, held=5)
    assert plain == masked


def test_two_forgotten_classes_have_a_prototype_each() -> None:
    forget, retain = made_up(4.0)
    labels = torch.arange(60) % 2
    features = forget.features.clone()
    features[labels == 1, :2] = 0  # the second class lies along the third axis alone
    logits = torch.cat([forget.logits, forget.logits[:, :1]], dim=1)
    both = Scored(features, logits, torch.where(labels == 1, 3, 0))
    kept = Scored(
        retain.features, torch.cat([retain.logits, retain.logits[:, :1]], dim=1), retain.labels
    )
    forgotten = torch.tensor([True, False, False, True])
    found = prototype_attack(both, kept, forgotten, 1.0, held=5)
    assert found is not None
    assert found.value > 95
    assert prototype_attack(both, kept, forgotten, 1.0, held=25) is None  # 30 images of each class


def test_too_few_images_have_no_value() -> None:
    forget, retain = made_up(1.0)
    few = forget.only(torch.arange(14))
    assert prototype_attack(few, retain, FORGOTTEN, 1.0, held=5) is None
    assert prototype_attack(few, retain, FORGOTTEN, 1.0, held=1) is not None


def test_the_length_of_a_row_is_that_of_the_retained_rows() -> None:
    head = nn.Linear(2, 3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[100.0, 0], [3, 4], [0, 1]]))
    assert row_length(head, FORGOTTEN, 2) == pytest.approx(3)
    convolution = nn.Conv2d(2, 3, 1)
    convolution.load_state_dict({"weight": head.weight[:, :, None, None], "bias": head.bias})
    assert row_length(convolution, FORGOTTEN, 2) == pytest.approx(3)
    assert row_length(nn.Conv2d(2, 3, 3), FORGOTTEN, 2) is None
    assert row_length(nn.Identity(), FORGOTTEN, 2) is None
