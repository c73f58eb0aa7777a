"""Each rule against autograd on one image at a time, in float64, over random shapes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pbu_cli.fisher.per_sample_gradients import (
    batch_norm,
    channel_sums,
    conv,
    linear,
    scale,
    shift,
)
from tests.fisher.fisher_oracle import per_image_gradients, random_tensor
from tests.fisher.shapes import ConvCase, conv_cases, random_shapes, shapes


@given(st.integers(1, 3), shapes(4), st.data())
@random_shapes
def test_shift_and_scale_sum_over_the_broadcast_dimensions(
    images: int, image: tuple[int, ...], data: st.DataObject
) -> None:
    dims = data.draw(st.integers(0, len(image)))
    shape = [data.draw(st.sampled_from([1, size])) for size in image[len(image) - dims :]]
    a, g = random_tensor(images, *image), random_tensor(images, *image, seed=1)
    p = random_tensor(*shape, seed=2)
    torch.testing.assert_close(shift(g, shape), per_image_gradients(torch.add, a, g, p))
    torch.testing.assert_close(scale(a, g, shape), per_image_gradients(torch.mul, a, g, p))


def test_shift_leaves_the_gradient_alone() -> None:
    g = random_tensor(2, 3)
    before = g.clone()
    shift(g, [3]).square()
    assert torch.equal(g, before)


@given(*[st.integers(1, 5)] * 4)
@random_shapes
def test_linear(images: int, positions: int, i: int, o: int) -> None:
    a, g = random_tensor(images, positions, i), random_tensor(images, positions, o, seed=1)
    expected = per_image_gradients(F.linear, a, g, random_tensor(o, i, seed=2))
    torch.testing.assert_close(linear(a, g), expected)


@given(conv_cases())
@random_shapes
def test_conv(case: ConvCase) -> None:
    a, g, expected = case.tensors()
    torch.testing.assert_close(conv(a, g, case.weight, case.options), expected)


@given(*[st.integers(1, 3)] * 3, shapes(3, most=7))
@random_shapes
def test_batch_norm(images: int, maps: int, channels: int, space: tuple[int, ...]) -> None:
    """With few positions and with many, which are summed in two ways."""
    shape = (images, maps, channels, *space)
    a, g = random_tensor(*shape), random_tensor(*shape, seed=1)
    mean, variance = random_tensor(channels, seed=2), random_tensor(channels, seed=3).exp()

    def forward(a_n: Tensor, weight: Tensor) -> Tensor:
        return F.batch_norm(a_n, mean, variance, weight, eps=0.1)

    expected = per_image_gradients(forward, a, g, random_tensor(channels, seed=4))
    torch.testing.assert_close(batch_norm(a, g, mean, variance, 0.1), expected)
    sums = g.sum([1, *range(3, g.ndim)])
    torch.testing.assert_close(channel_sums(g), sums)
