"""The rules of the table, as the layers call them, against autograd over random shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pbu_cli.fisher.layer_table import LAYERS
from tests.fisher.fisher_oracle import per_image_gradients, random_tensor
from tests.fisher.shapes import CONVOLUTIONS, random_shapes, shapes


def check(
    functional: Callable[..., Tensor], arguments: dict[str, Any], name: str, a: Tensor, p: Tensor
) -> None:
    """The rule of argument `name` for images a [n, k, ...], its gradients and their squares."""

    def forward(a_n: Tensor, p: Tensor) -> Tensor:
        return functional(input=a_n, **{**arguments, name: p})

    g = random_tensor(len(a), *forward(a[0], p).shape, seed=5)
    expected = per_image_gradients(forward, a, g, p)
    rule = LAYERS[functional].rules[name]
    torch.testing.assert_close(rule.per_sample(arguments, a, g, p.shape), expected)
    total = torch.ones_like(p)
    rule.add_squared(total, arguments, a, g)
    torch.testing.assert_close(total, 1 + expected.square().sum(0))


@pytest.mark.parametrize("name", ["weight", "bias"])
@given(*[st.integers(1, 4)] * 3, shapes(3))
@random_shapes
def test_linear(name: str, images: int, i: int, o: int, positions: tuple[int, ...]) -> None:
    a, weight, bias = random_tensor(images, 1, *positions, i), random_tensor(o, i), random_tensor(o)
    arguments = {"weight": weight, "bias": bias}
    check(F.linear, arguments, name, a, arguments[name])


@given(*[st.integers(1, 4)] * 3, shapes(3))
@random_shapes
def test_matmul(images: int, i: int, o: int, positions: tuple[int, ...]) -> None:
    a, factor = random_tensor(images, 1, *positions, i), random_tensor(i, o)
    check(torch.matmul, {}, "other", a, factor)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", ["weight", "bias"])
@given(st.integers(1, 3), st.integers(1, 2), st.data())
@random_shapes
def test_conv_with_the_same_size(name: str, images: int, maps: int, data: st.DataObject) -> None:
    """`padding="same"`, for which an even kernel is padded unevenly; any memory layout."""
    dims = data.draw(st.integers(1, 3))
    kernel = [data.draw(st.integers(1, 4)) for _ in range(dims)]
    space = [data.draw(st.integers(1, 5)) for _ in range(dims)]
    weight = random_tensor(4, 2, *kernel)
    if dims == 2 and data.draw(st.booleans()):
        weight = weight.to(memory_format=torch.channels_last)
    arguments: dict[str, Any] = {
        "weight": weight,
        "bias": random_tensor(4),
        "padding": "same",
        "dilation": data.draw(st.integers(1, 2)),
    }
    functional = CONVOLUTIONS[dims - 1]
    check(functional, arguments, name, random_tensor(images, maps, 2, *space), arguments[name])


@pytest.mark.parametrize("name", ["weight", "bias"])
@given(*[st.integers(1, 3)] * 4, shapes(3))
@random_shapes
def test_group_norm(
    name: str, images: int, maps: int, groups: int, each: int, space: tuple[int, ...]
) -> None:
    channels = groups * each
    # The last dimension keeps torch from refusing to normalise a single number.
    a = random_tensor(images, maps, channels, *space, 2)
    arguments: dict[str, Any] = {
        "num_groups": groups,
        "weight": random_tensor(channels, seed=1),
        "bias": random_tensor(channels, seed=2),
        "eps": 0.1,
    }
    check(F.group_norm, arguments, name, a, arguments[name])


@pytest.mark.parametrize("name", ["weight", "bias"])
@given(st.integers(1, 3), shapes(2), shapes(3).filter(len))
@random_shapes
def test_layer_norm(
    name: str, images: int, positions: tuple[int, ...], normed: tuple[int, ...]
) -> None:
    a = random_tensor(images, 1, *positions, *normed)
    arguments: dict[str, Any] = {
        "normalized_shape": normed,
        "weight": random_tensor(*normed, seed=1),
        "bias": random_tensor(*normed, seed=2),
        "eps": 0.1,
    }
    check(F.layer_norm, arguments, name, a, arguments[name])


@given(*[st.integers(1, 3)] * 2, shapes(3), st.booleans())
@random_shapes
def test_input_gradient_of_batch_norm(
    images: int, channels: int, space: tuple[int, ...], affine: bool
) -> None:
    a = random_tensor(images, channels, *space).requires_grad_()
    g = random_tensor(images, channels, *space, seed=1)
    arguments: dict[str, Any] = {
        "running_mean": random_tensor(channels, seed=2),
        "running_var": random_tensor(channels, seed=3).exp(),
        "weight": random_tensor(channels, seed=4) if affine else None,
        "eps": 0.1,
    }
    (expected,) = torch.autograd.grad(F.batch_norm(a, **arguments), a, g)
    by_hand = LAYERS[F.batch_norm].input_gradient
    assert by_hand is not None
    torch.testing.assert_close(by_hand(arguments, g), expected)
