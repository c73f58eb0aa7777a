"""Batches and their count."""

from __future__ import annotations

import torch

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.settings import Preprocessing

UNIT = Preprocessing((1, 1), (0.0,), (1.0,))


def loader_of(images: int, counts: list[int] | None = None) -> CountingLoader:
    pixels = torch.zeros(images, 1, 1, 1, dtype=torch.uint8)
    count_images = (lambda number: None) if counts is None else counts.append
    return CountingLoader(pixels, torch.arange(images), UNIT, count_images=count_images)


def test_each_epoch_has_every_image_once_in_its_own_order() -> None:
    generator = torch.Generator().manual_seed(0)
    loader = loader_of(10)
    epochs = [torch.cat([y for _, y in loader.shuffled(4, generator)]).tolist() for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))


def test_a_last_batch_of_one_image_is_dropped_and_not_counted() -> None:
    counts: list[int] = []
    loader = loader_of(9, counts)
    batches = list(loader.shuffled(4, torch.Generator()))
    assert [len(y) for _, y in batches] == counts == [4, 4]
    assert loader.batches_per_epoch(4) == 2
    assert [loader_of(n).batches_per_epoch(4) for n in (0, 1, 2, 4, 10)] == [0, 0, 1, 1, 3]


def test_drop_last_drops_an_incomplete_batch_unless_it_is_the_only_one() -> None:
    numbers = [loader_of(n).batches_per_epoch(4, drop_last=True) for n in (0, 1, 2, 4, 6, 11)]
    assert numbers == [0, 0, 1, 1, 1, 2]
    batches = loader_of(11).shuffled(4, torch.Generator(), drop_last=True)
    assert [len(y) for _, y in batches] == [4, 4]


def test_a_subset_has_the_counter_of_the_whole() -> None:
    counts: list[int] = []
    list(loader_of(9, counts).subset(torch.arange(9) > 4).batches(3))
    assert counts == [3, 1]


def test_an_empty_loader_has_no_batches() -> None:
    empty = loader_of(3).subset(torch.zeros(3, dtype=torch.bool))
    assert list(empty.batches(2)) == list(empty.shuffled(2, torch.Generator())) == []
