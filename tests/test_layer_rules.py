"""Each rule against autograd on one image at a time, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pbu_cli import layer_rules
from pbu_cli.layer_rules import conv, conv_squared, linear, linear_squared, scale, shift


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


@pytest.mark.parametrize("positions", [1, 2, 7])
@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
def test_linear(positions: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_rules, "_CHUNK", chunk)
    a, g, p = drawn(5, positions, 3), drawn(5, positions, 4), drawn(4, 3)
    wanted = per_image(lambda a_n, w: a_n @ w.T, a, g, p)
    torch.testing.assert_close(linear(a, g), wanted)
    torch.testing.assert_close(linear_squared(a, g), wanted.square().sum(0))


CONVS: list[Callable[..., Tensor]] = [
    torch.nn.functional.conv1d,
    torch.nn.functional.conv2d,
    torch.nn.functional.conv3d,
]
OPTIONS = [  # stride, padding, dilation, groups; 7 wide, so that strides leave a rest over
    (1, 0, 1, 1),
    (2, 1, 1, 1),
    (3, 2, 2, 1),
    (1, 1, 1, 2),
    (2, 0, 1, 4),
    (1, 2, 2, 4),
]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("maps", "few"), list(itertools.product([1, 3], [0, 1 << 20])))
def test_conv(
    dims: int,
    options: tuple[int, int, int, int],
    maps: int,
    few: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both kernels, forced in turn through the number of positions that counts as few."""
    monkeypatch.setattr(layer_rules, "_FEW_POSITIONS", few)
    monkeypatch.setattr(layer_rules, "_CHUNK", 100)
    *per_dim, groups = options
    spread = [[option] * dims for option in per_dim]
    a, p = drawn(2, maps, 4, *[7] * dims), drawn(8, 4 // groups, *[3, 2, 1][:dims])

    def forward(a_n: Tensor, w: Tensor) -> Tensor:
        return CONVS[dims - 1](a_n, w, None, *spread, groups)

    g = torch.stack([torch.sin(forward(a_n, p)) for a_n in a])
    wanted = per_image(forward, a, g, p)
    torch.testing.assert_close(conv(a, g, p.shape, *spread), wanted)
    torch.testing.assert_close(conv_squared(a, g, p.shape, *spread), wanted.square().sum(0))


def test_conv_takes_any_memory_layout() -> None:
    a = drawn(2, 1, 4, 5, 5).flatten(0, 1).to(memory_format=torch.channels_last).unsqueeze(1)
    g = drawn(2, 3, 3, 1, 6).permute(0, 3, 4, 1, 2)
    size, options = (6, 4, 3, 3), ([1, 1], [0, 0], [1, 1])
    wanted = conv(a.contiguous(), g.contiguous(), size, *options)
    torch.testing.assert_close(conv(a, g, size, *options), wanted)
    torch.testing.assert_close(conv_squared(a, g, size, *options), wanted.square().sum(0))
