"""Which orders folders may stand in, and when another order is clearly better."""

from __future__ import annotations

import pytest
import torch

from pbu_cli.data.class_order import better_order, class_orders

BY_STRING = sorted(map(str, range(12)))


@pytest.mark.parametrize(
    ("names", "class_names", "count", "order", "labels"),
    [
        (BY_STRING, None, 12, "name", [int(name) for name in BY_STRING]),
        (BY_STRING, None, 12, "position", list(range(12))),
        (["class0", "class10", "class2"], None, 12, "position", [0, 2, 4]),  # some left out
        (["0", "1", "2"], None, 3, "position", [0, 1, 2]),
        (["1", "2", "3"], None, 3, "one-based", [0, 1, 2]),
        (["1", "10", "2"], None, 10, "one-based", [0, 9, 1]),
        (["1", "2"], None, 10, "position among numbers from 1", [0, 2]),
        (["bird", "cat"], ("dog", "cat", "bird"), 3, "name", [2, 1]),
        (["bird", "cat"], ("dog", "cat", "bird"), 3, "position", [0, 1]),
        (["a", "b"], None, 2, "position", [0, 1]),
        (["11", "10"], ("0", "1", "10", "11"), 4, "name", [3, 2]),
    ],
)
def test_an_order_gives_each_folder_its_class(
    names: list[str], class_names: tuple[str, ...] | None, count: int, order: str, labels: list[int]
) -> None:
    assert class_orders(names, class_names, count)[order] == labels


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["0", "1"], "one-based"),
        (["01", "02"], "one-based"),  # sorted by name they are sorted by number
        (["1", "12"], "name"),
        (["1", "class1"], "name"),  # the same class twice
        (["a", "b"], "position"),
        (["1", "-2"], "name"),
    ],
)
def test_an_order_that_does_not_give_each_a_class_of_its_own_is_none(
    names: list[str], order: str
) -> None:
    assert order not in class_orders(names, None, 12)


def predictions(truth: torch.Tensor, share: float) -> torch.Tensor:
    """The truth for a share of the images, class 0 for the others."""
    right = torch.rand(len(truth), generator=torch.Generator().manual_seed(0)) < share
    return torch.where(right, truth, 0)


@pytest.mark.parametrize("share", [1.0, 0.6, 0.35])
def test_an_order_that_fits_far_better_is_found(share: float) -> None:
    used = torch.tensor([int(name) for name in BY_STRING]).repeat(50)
    truth = torch.arange(12).repeat(50)
    found = better_order(predictions(truth, share), used, {"position": truth})
    assert found is not None
    assert (found.order, found.classes) == ("position", 10)
    assert found.recognised == pytest.approx(100 * share, abs=5)
    assert found.used_recognised == pytest.approx(0, abs=0.1)
    assert better_order(predictions(used, share), used, {"position": truth}) is None


@pytest.mark.parametrize("share", [0.0, 0.05, 0.15])
def test_a_network_that_is_merely_bad_fits_no_order(share: float) -> None:
    used = torch.tensor([int(name) for name in BY_STRING]).repeat(50)
    truth = torch.arange(12).repeat(50)
    for right in (used, truth):
        assert better_order(predictions(right, share), used, {"position": truth}) is None
    rolled = {"one-based": (used - 1).clamp(min=0)}
    assert better_order(torch.zeros_like(used), used, rolled) is None  # one class for all images


def test_two_classes_that_a_network_confuses_are_no_order_unless_both_swap() -> None:
    used, other = torch.arange(4).repeat(50), torch.tensor([0, 2, 1, 3]).repeat(50)
    half = torch.where(used == 1, 2, used)  # 1 is taken for 2, and 2 is recognised
    assert better_order(half, used, {"position": other}) is None
    found = better_order(other, used, {"position": other})
    assert found is not None
    assert found.classes == 2
