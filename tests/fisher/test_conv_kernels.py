"""Each kernel of a convolution, forced in turn, against autograd on one image at a time."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pbu_cli.fisher import linear_kernels
from pbu_cli.fisher.conv_kernels import CONV, add_conv, kernel_offsets
from pbu_cli.fisher.per_sample_gradients import ConvOptions, conv
from tests.fisher.fisher_oracle import random_tensor
from tests.fisher.shapes import ConvCase, conv_cases, random_shapes


@pytest.mark.parametrize("kernel", [*CONV, "chosen"])
@given(st.data(), st.sampled_from([1, 60, 1 << 18]))
@random_shapes
def test_conv(kernel: str, data: st.DataObject, scratch: int) -> None:
    """On as many chunks as there are images, on some, and on one."""
    case = data.draw(conv_cases("folded" if kernel == "chosen" else kernel))
    a, g, gradients = case.tensors()
    expected = 1 + gradients.square().sum(0).movedim(1, -1)
    total = torch.ones_like(expected, memory_format=torch.contiguous_format)
    with patch.dict(linear_kernels._SCRATCH_NUMBERS, cpu=scratch):
        (add_conv if kernel == "chosen" else CONV[kernel])(total, a, g, case.options)
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("name", [name for name in CONV if name != "depthwise"])
def test_conv_takes_any_memory_layout(name: str) -> None:
    a = random_tensor(2, 1, 4, 5, 5).flatten(0, 1).to(memory_format=torch.channels_last)
    a = a.unsqueeze(1)
    g = random_tensor(2, 3, 3, 1, 6, seed=1).permute(0, 3, 4, 1, 2)
    options = ConvOptions((1, 1), (0, 0), (1, 1))
    expected = conv(a.contiguous(), g.contiguous(), (6, 4, 3, 3), options)
    torch.testing.assert_close(conv(a, g, (6, 4, 3, 3), options), expected)
    total = torch.zeros(6, 3, 3, 4, dtype=torch.double)
    CONV[name](total, a, g, options)
    torch.testing.assert_close(total, expected.square().sum(0).movedim(1, -1))


@given(conv_cases())
@random_shapes
def test_a_kernel_offset_that_only_reaches_padding_is_left_out(case: ConvCase) -> None:
    a = torch.ones(1, 1, 1, *case.space, dtype=torch.double)
    kernel = case.weight[2:]
    one = ConvCase(1, 1, 1, (1, 1, *kernel), case.space, case.options)
    positions = one.forward(a[0], torch.ones(1, 1, *kernel, dtype=torch.double)).shape[2:]
    g = torch.ones(1, 1, 1, *positions, dtype=torch.double)
    gradient = conv(a, g, (1, 1, *kernel), case.options).flatten()
    found = kernel_offsets(case.space, positions, kernel, case.options)
    assert [offset.number for offset in found] == gradient.nonzero().flatten().tolist()
    assert [offset.positions() for offset in found] == gradient[gradient != 0].tolist()
