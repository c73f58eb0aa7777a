"""Each rule against autograd on one image at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pbu_cli.fisher.per_sample_gradients import batch_norm, channel_sums, scale, shift


def drawn(*shape: int) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.double
    )


def per_image(
    forward: Callable[[Tensor, Tensor], Tensor], a: Tensor, g: Tensor, p: Tensor
) -> Tensor:
    """[n, *p.shape] by one backward pass for each image."""
    rows: list[Tensor] = []
    for a_n, g_n in zip(a, g, strict=True):
        leaf = p.clone().requires_grad_()
        rows += torch.autograd.grad(forward(a_n, leaf), leaf, g_n)
    return torch.stack(rows)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (4, 1), (1, 5), (3, 4, 5), (1, 1, 1), ()])
def test_shift_and_scale_sum_over_what_is_broadcast(shape: tuple[int, ...]) -> None:
    a, g, p = drawn(2, 3, 4, 5), drawn(2, 3, 4, 5).flip(0), drawn(*shape)
    torch.testing.assert_close(shift(g, shape), per_image(torch.add, a, g, p))
    torch.testing.assert_close(scale(a, g, shape), per_image(torch.mul, a, g, p))


def test_shift_leaves_the_gradient_alone() -> None:
    g = drawn(2, 3)
    before = g.clone()
    shift(g, [3]).square()
    assert torch.equal(g, before)


@pytest.mark.parametrize("space", [(), (1,), (3, 2), (7, 9)])
@pytest.mark.parametrize("maps", [1, 2])
def test_batch_norm(space: tuple[int, ...], maps: int) -> None:
    """With few positions and with many, which take two ways."""
    a, g = drawn(3, maps, 4, *space), drawn(3, maps, 4, *space).flip(0)
    mean, variance = drawn(4), drawn(4).exp()
    column = (4, *(1 for _ in space))
    normed = (a - mean.view(column)) / (variance.view(column) + 0.1).sqrt()
    dims = [1, *range(3, 3 + len(space))]
    torch.testing.assert_close(batch_norm(a, g, mean, variance, 0.1), (normed * g).sum(dims))
    torch.testing.assert_close(channel_sums(g), g.sum(dims))
