"""Batches that are counted."""

from __future__ import annotations

import torch

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.settings import Preprocessing

UNIT = Preprocessing((1, 1), (0.0,), (1.0,))


def feed(count: int, heard: list[int] | None = None) -> CountingLoader:
    pixels = torch.zeros(count, 1, 1, 1, dtype=torch.uint8)
    seen = (lambda images: None) if heard is None else heard.append
    return CountingLoader(pixels, torch.arange(count), UNIT, seen=seen)


def test_an_epoch_has_every_image_once_in_an_order_of_its_own():
    generator = torch.Generator().manual_seed(0)
    some = feed(10)
    epochs = [torch.cat([y for _, y in some.shuffled(4, generator)]).tolist() for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))


def test_an_image_alone_in_its_batch_is_left_out_and_not_counted():
    heard: list[int] = []
    some = feed(9, heard)
    rounds = list(some.shuffled(4, torch.Generator()))
    assert [len(y) for _, y in rounds] == heard == [4, 4]
    assert some.rounds(4) == 2
    assert [feed(n).rounds(4) for n in (0, 1, 2, 4, 10)] == [0, 0, 1, 1, 3]


def test_full_batches_leave_out_the_rest_unless_it_is_all_there_is():
    assert [feed(n).rounds(4, full=True) for n in (0, 1, 2, 4, 6, 11)] == [0, 0, 1, 1, 1, 2]
    assert [len(y) for _, y in feed(11).shuffled(4, torch.Generator(), full=True)] == [4, 4]


def test_chosen_images_are_counted_where_the_others_are():
    heard: list[int] = []
    list(feed(9, heard).chosen(torch.arange(9) > 4).batches(3))
    assert heard == [3, 1]


def test_nothing_has_no_batches():
    nothing = feed(3).chosen(torch.zeros(3, dtype=torch.bool))
    assert list(nothing.batches(2)) == list(nothing.shuffled(2, torch.Generator())) == []
