"""Metrics on cases small enough to check by hand; the library's doctests cover the rest."""

import math

import torch

from pbu_cli.evaluation import metrics


def test_accuracy_of_no_images_is_unknown():
    assert math.isnan(metrics.accuracy(torch.tensor([]), torch.tensor([])))
    assert all(math.isnan(bound) for bound in metrics.interval(0.0, 0))


def test_accuracy_per_class_counts_each_class_by_itself():
    answers, labels = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 1])
    assert metrics.accuracy_per_class(answers, labels) == {0: 100.0, 1: 100 / 3}


def test_wilson_interval_matches_its_closed_form():
    """8 of 10 at z = 1.96: Wilson's centre and spread worked out by hand."""
    low, high = metrics.interval(80.0, 10)
    assert (round(low, 1), round(high, 1)) == (49.0, 94.3)


def test_wilson_interval_covers_as_often_as_it_says():
    generator = torch.Generator().manual_seed(1)
    p, n = 0.07, 200
    inside = 0
    for _ in range(2000):
        share = 100 * (torch.rand(n, generator=generator) < p).double().mean().item()
        low, high = metrics.interval(share, n)
        inside += low <= 100 * p <= high
    assert 0.93 < inside / 2000 < 0.97


def test_head_mask_never_answers_with_a_forgotten_class():
    logits = torch.randn(50, 4)
    masked = metrics.head_mask(logits, torch.tensor([False, False, True, False]))
    assert (masked.argmax(1) != 2).all()
    assert torch.equal(masked[:, [0, 1, 3]], logits[:, [0, 1, 3]])


def test_the_row_shift_is_the_least_that_hides_the_class():
    generator = torch.Generator().manual_seed(3)
    features = torch.rand(1000, 6, generator=generator)
    head = torch.randn(4, 6, generator=generator)
    head[1] += 3
    forgotten = torch.tensor([False, True, False, False])
    logits = features @ head.T
    shift = metrics.row_shift(logits, features, forgotten)
    moved = head - forgotten[:, None] * shift
    shown = metrics.shift_rows(logits, features, forgotten, shift)
    assert torch.allclose(shown, features @ moved.T, atol=1e-4)
    assert (shown.argmax(1) == 1).sum() == 5  # 0.5 % of 1,000
    a_little_less = metrics.shift_rows(logits, features, forgotten, 0.999 * shift)
    assert (a_little_less.argmax(1) == 1).sum() > 5


def test_no_row_shift_hides_images_that_share_nothing_with_the_mean():
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # their mean is nought
    assert metrics.row_shift(torch.eye(2), features, torch.tensor([True, False])) is None
