"""Metrics on cases small enough to check by hand; the library's doctests cover the rest."""

import math

import torch

from pbu_cli import metrics


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
