"""Random shapes for the tests of rules and kernels: hypothesis strategies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from pbu_cli.fisher.per_sample_gradients import ConvOptions
from tests.fisher.fisher_oracle import per_image_gradients, random_tensor

# Time limits for one example say little on a busy machine.
random_shapes = settings(deadline=None, max_examples=200)

CONVOLUTIONS: list[Callable[..., Tensor]] = [F.conv1d, F.conv2d, F.conv3d]


@dataclass(frozen=True)
class ConvCase:
    """A convolution of 1 to 3 dimensions, and the images that it sees.

    weight: its shape [o, c / groups, *kernel]. space: of the input.
    """

    images: int
    maps: int
    groups: int
    weight: tuple[int, ...]
    space: tuple[int, ...]
    options: ConvOptions

    def forward(self, a: Tensor, weight: Tensor) -> Tensor:
        """The output for the maps a [k, c, *space] of one image."""
        convolution = CONVOLUTIONS[len(self.space) - 1]
        return convolution(a, weight, None, *self.options, self.groups)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Random a [n, k, c, *space], g [n, k, o, *positions], and the gradient of each image."""
        a = random_tensor(self.images, self.maps, self.groups * self.weight[1], *self.space)
        weight = random_tensor(*self.weight, seed=1)
        positions = self.forward(a[0], weight).shape[2:]
        g = random_tensor(self.images, self.maps, self.weight[0], *positions, seed=2)
        return a, g, per_image_gradients(self.forward, a, g, weight)


@st.composite
def conv_cases(draw: st.DrawFn, kernel: str = "folded") -> ConvCase:
    """Any convolution for which `conv_kernel` may choose this kernel ("folded": any at all)."""
    dims = draw(st.integers(1, 3))

    def per_dimension(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    size, padding, dilation = per_dimension(1, 3), per_dimension(0, 3), per_dimension(1, 2)
    stride = per_dimension(1, 1 if kernel == "swapped" else 3)
    extents = [gap * (k - 1) + 1 for gap, k in zip(dilation, size, strict=True)]
    smallest = [max(1, e - 2 * p) for e, p in zip(extents, padding, strict=True)]
    groups = draw(st.integers(1, 3)) if kernel in ("folded", "depthwise") else 1
    out, channels = (1, 1) if kernel == "depthwise" else draw(st.tuples(*[st.integers(1, 3)] * 2))
    return ConvCase(
        images=draw(st.integers(1, 3)),
        maps=draw(st.integers(1, 2)),
        groups=groups,
        weight=(groups * out, channels, *size),
        space=tuple(draw(st.integers(least, least + 4)) for least in smallest),
        options=ConvOptions(stride, padding, dilation),
    )


def shapes(dims: int, most: int = 4) -> Any:
    """Shapes of up to this many dimensions, none of them empty."""
    return st.lists(st.integers(1, most), max_size=dims).map(tuple)
