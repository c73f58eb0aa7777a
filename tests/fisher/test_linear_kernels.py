"""Each kernel of a linear layer, forced in turn, against autograd on one image at a time."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pbu_cli.fisher import linear_kernels
from pbu_cli.fisher.linear_kernels import LINEAR, add_linear, add_squares
from pbu_cli.fisher.per_sample_gradients import linear
from tests.fisher.fisher_oracle import per_image_gradients, random_tensor
from tests.fisher.shapes import random_shapes, shapes


@given(st.integers(1, 20), shapes(3))
@random_shapes
def test_add_squares(images: int, shape: tuple[int, ...]) -> None:
    gradients = random_tensor(images, *shape)
    total = torch.ones(shape, dtype=torch.double)
    before = gradients.clone()
    add_squares(total, gradients)
    torch.testing.assert_close(total, 1 + before.square().sum(0))
    assert torch.equal(gradients, before)


@given(*[st.integers(1, 7)] * 4, st.sampled_from([1, 60, 1 << 18]))
@random_shapes
def test_linear(images: int, positions: int, i: int, o: int, scratch: int) -> None:
    """Every kernel and the chosen one, on as many chunks as there are images, on some, on one."""
    a, g = random_tensor(images, positions, i), random_tensor(images, positions, o, seed=1)
    gradients = per_image_gradients(F.linear, a, g, random_tensor(o, i, seed=2))
    with patch.dict(linear_kernels._SCRATCH_NUMBERS, cpu=scratch):
        for add in (*LINEAR.values(), add_linear):
            total = torch.ones(o, i, dtype=torch.double)
            add(total, a, g)
            torch.testing.assert_close(total, 1 + gradients.square().sum(0))


@pytest.mark.parametrize("kernel", LINEAR)
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("least", [0, 1 << 40])
def test_linear_takes_any_memory_layout(
    least: int, kernel: str, order: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp32, with oneDNN where it is available, and without it."""
    monkeypatch.setattr(linear_kernels, "_MIN_MULTIPLICATIONS_FOR_ONEDNN", least)
    # A small scratch buffer, since `add_products` handles small layers in another way.
    monkeypatch.setattr(linear_kernels, "_SCRATCH_NUMBERS", {"cpu": 60})

    def laid_out(t: Tensor) -> Tensor:
        back = [order.index(dim) for dim in range(3)]
        return t.permute(order).contiguous().permute(back)

    a, g = random_tensor(5, 3, 40).float(), random_tensor(5, 3, 30, seed=1).float()
    expected = linear(a.double(), g.double()).square().sum(0)
    total = torch.zeros(30, 40)
    LINEAR[kernel](total, laid_out(a), laid_out(g))
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)


def test_pairs_of_a_gradient_that_is_zero_are_not_below_zero() -> None:
    a, g = random_tensor(50, 4, 30).float(), random_tensor(50, 4, 20, seed=1).float()
    a[:, 2:], g[:, 2:] = a[:, :2], -g[:, :2]  # the positions cancel
    total = torch.zeros(20, 30)
    LINEAR["pairs"](total, a, g)
    assert float(total.min()) >= 0
    assert float(total.max()) < 1e-3
