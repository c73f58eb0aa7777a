"""Metrics on cases that are small enough to check by hand; the doctests cover the rest."""

import math

import pytest
import torch

from pbu_cli.evaluation import metrics


def test_accuracy_without_images_is_unknown() -> None:
    assert math.isnan(metrics.accuracy(torch.tensor([]), torch.tensor([])))


def test_accuracy_per_class_counts_each_class_by_itself() -> None:
    predictions, labels = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 1])
    assert metrics.accuracy_per_class(predictions, labels) == {0: 100.0, 1: 100 / 3}


def test_head_mask_never_predicts_a_forgotten_class() -> None:
    logits = torch.randn(50, 4)
    masked = metrics.head_mask(logits, torch.tensor([False, False, True, False]))
    assert (masked.argmax(1) != 2).all()
    assert torch.equal(masked[:, [0, 1, 3]], logits[:, [0, 1, 3]])


def test_the_row_shift_is_the_smallest_that_hides_the_class() -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.rand(1000, 6, generator=generator)
    head = torch.randn(4, 6, generator=generator)
    head[1] += 3
    forgotten = torch.tensor([False, True, False, False])
    logits = features @ head.T
    shift = metrics.row_shift(logits, features, forgotten)
    assert shift is not None
    shifted_head = head - forgotten[:, None] * shift
    shifted = metrics.shift_rows(logits, features, forgotten, shift)
    assert torch.allclose(shifted, features @ shifted_head.T, atol=1e-4)
    assert (shifted.argmax(1) == 1).sum() == 5  # 0.5 % of 1,000
    slightly_less = metrics.shift_rows(logits, features, forgotten, 0.999 * shift)
    assert (slightly_less.argmax(1) == 1).sum() > 5


def test_no_row_shift_hides_images_whose_features_cancel_in_the_mean() -> None:
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # their mean is 0
    assert metrics.row_shift(torch.eye(2), features, torch.tensor([True, False])) is None


def test_the_adaptive_score_is_its_formula_and_takes_resamples() -> None:
    retain = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]).double()
    forget = torch.tensor([1.0, 0.0]).double()
    value = metrics.adaptive_unlearning_score(retain, forget)
    assert value.item() == pytest.approx((1 - (0.6 - 0.6)) / 1.5)
    stacked = metrics.adaptive_unlearning_score(
        torch.stack([retain, retain[:, [0, 0]]]), torch.stack([forget, 0 * forget])
    )
    assert stacked.tolist() == pytest.approx([1 / 1.5, 1.0])


def test_a_gain_of_retained_accuracy_scores_above_1() -> None:
    retain = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    assert metrics.adaptive_unlearning_score(retain, torch.zeros(3)).item() == 1.5
