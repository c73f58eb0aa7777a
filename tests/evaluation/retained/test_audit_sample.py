"""The audit's sample of the retained images."""

from __future__ import annotations

from math import ceil, floor

import torch
from hypothesis import given
from hypothesis import strategies as st

from pbu_cli.evaluation.retained.audit_sample import sample_size, stratified_sample


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 60), st.integers(0, 99))
def test_every_class_has_its_share_rounded_up_or_down(
    classes: list[int], size: int, seed: int
) -> None:
    labels = torch.tensor(classes)
    size = min(size, len(labels))
    chosen = stratified_sample(labels, size, seed)
    assert chosen.unique().tolist() == chosen.tolist()  # in order, none twice
    assert len(chosen) == size
    for label in set(classes):
        share = size * classes.count(label) / len(classes)
        assert floor(share) <= int((labels[chosen] == label).sum()) <= ceil(share)


def test_the_seed_draws_the_sample() -> None:
    labels = torch.arange(10).repeat_interleave(100)
    first, again, other = (stratified_sample(labels, 50, seed).tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_large_images_make_a_smaller_sample() -> None:
    assert sample_size(5, 3 * 224 * 224) == 5
    assert sample_size(10**6, 3 * 32 * 32) == 10_000
    assert sample_size(10**6, 1 << 40) == 1
