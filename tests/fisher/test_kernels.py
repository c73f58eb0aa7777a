"""Each kernel, forced in turn, against autograd on one image at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pbu_cli.fisher import linear_kernels as kernels
from pbu_cli.fisher.conv_kernels import CONV, add_conv, taps
from pbu_cli.fisher.linear_kernels import LINEAR, add_linear, add_squares
from pbu_cli.fisher.per_sample_gradients import Options, conv, linear
from tests.fisher.test_per_sample_gradients import drawn, per_image


@pytest.fixture(params=[1, 60, 1 << 18])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many chunks as there are images, some, and one."""
    monkeypatch.setattr(kernels, "_HELD", {"cpu": request.param})


@pytest.mark.parametrize("images", [1, 20])
def test_add_squares(images: int) -> None:
    each = drawn(images, 3, 2)
    total = torch.ones(3, 2, dtype=torch.double)
    before = each.clone()
    add_squares(total, each)
    torch.testing.assert_close(total, 1 + each.square().sum(0))
    assert torch.equal(each, before)


@pytest.mark.parametrize("positions", [1, 2, 7])
@pytest.mark.parametrize("kernel", LINEAR)
@pytest.mark.usefixtures("held")
def test_linear(positions: int, kernel: str) -> None:
    a, g, p = drawn(5, positions, 3), drawn(5, positions, 4), drawn(4, 3)
    wanted = per_image(lambda a_n, w: a_n @ w.T, a, g, p)
    torch.testing.assert_close(linear(a, g), wanted)
    for add in (LINEAR[kernel], add_linear):
        total = torch.ones_like(p)
        add(total, a, g)
        torch.testing.assert_close(total, 1 + wanted.square().sum(0))


FUNCTIONS: list[Callable[..., Tensor]] = [
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
    (1, 3, 1, 1),
]


def can(kernel: str, stride: int, groups: int, depthwise: bool) -> bool:
    """Whether `conv_kernel` may ever choose this one."""
    if kernel in ("pairs", "unfolded", "swapped"):
        return groups == 1 and (kernel != "swapped" or stride == 1)
    return kernel != "depthwise" or depthwise


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("maps", "width", "o"), [(1, 7, 8), (3, 7, 4), (1, 2, 4), (1, 1, 4)])
@pytest.mark.usefixtures("held")
def test_conv(dims: int, options: tuple[int, ...], maps: int, width: int, o: int) -> None:
    """Every kernel, forced in turn, and the one that is chosen."""
    stride, padding, dilation, groups = options
    size = [o, 4 // groups, *[3, 2, 1][:dims]]
    if width + 2 * padding <= 2 * dilation:
        pytest.skip("the kernel is larger than the image")
    spread = Options((stride,) * dims, (padding,) * dims, (dilation,) * dims)
    a, p = drawn(2, maps, 4, *[width] * dims), drawn(*size)

    def forward(a_n: Tensor, w: Tensor) -> Tensor:
        return FUNCTIONS[dims - 1](a_n, w, None, *spread, groups)

    g = torch.stack([torch.sin(forward(a_n, p)) for a_n in a])
    each = per_image(forward, a, g, p)
    torch.testing.assert_close(conv(a, g, p.shape, spread), each)
    wanted = 1 + each.square().sum(0).movedim(1, -1)
    fitting = [CONV[name] for name in CONV if can(name, stride, groups, o == groups)]
    for add in (*fitting, add_conv):
        total = torch.ones_like(wanted, memory_format=torch.contiguous_format)
        add(total, a, g, spread)
        torch.testing.assert_close(total, wanted)


@pytest.mark.parametrize("name", [name for name in CONV if name != "depthwise"])
def test_conv_takes_any_memory_layout(name: str) -> None:
    a = drawn(2, 1, 4, 5, 5).flatten(0, 1).to(memory_format=torch.channels_last).unsqueeze(1)
    g = drawn(2, 3, 3, 1, 6).permute(0, 3, 4, 1, 2)
    options = Options((1, 1), (0, 0), (1, 1))
    wanted = conv(a.contiguous(), g.contiguous(), (6, 4, 3, 3), options)
    torch.testing.assert_close(conv(a, g, (6, 4, 3, 3), options), wanted)
    total = torch.zeros(6, 3, 3, 4, dtype=torch.double)
    CONV[name](total, a, g, options)
    torch.testing.assert_close(total, wanted.square().sum(0).movedim(1, -1))


@pytest.mark.parametrize("kernel", LINEAR)
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("least", [0, 1 << 40])
def test_linear_takes_any_memory_layout(
    least: int, kernel: str, order: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp32, by oneDNN where there is one, and not."""
    monkeypatch.setattr(kernels, "_TO_COMPILE", least)
    monkeypatch.setattr(kernels, "_HELD", {"cpu": 60})  # `linear` takes what is small at once

    def laid_out(t: Tensor) -> Tensor:
        back = [order.index(dim) for dim in range(3)]
        return t.permute(order).contiguous().permute(back)

    a, g = drawn(5, 3, 40).float(), drawn(5, 3, 30).float()
    wanted = linear(a.double(), g.double()).square().sum(0)
    total = torch.zeros(30, 40)
    LINEAR[kernel](total, laid_out(a), laid_out(g))
    torch.testing.assert_close(total.double(), wanted, rtol=1e-5, atol=1e-5)


def test_pairs_of_a_gradient_that_is_zero_are_not_below_zero() -> None:
    a, g = drawn(50, 4, 30).float(), drawn(50, 4, 20).float()
    a[:, 2:], g[:, 2:] = a[:, :2], -g[:, :2]  # the positions cancel
    total = torch.zeros(20, 30)
    LINEAR["pairs"](total, a, g)
    assert float(total.min()) >= 0
    assert float(total.max()) < 1e-3


def test_a_tap_over_padding_alone_is_left_out() -> None:
    options = Options((2, 1), (1, 2), (1, 2))
    met = {tap.number for tap in taps((3, 2), (2, 2), (3, 3), options)}
    ones = torch.ones(1, 1, 3, 2, dtype=torch.double), torch.ones(1, 1, 2, 2, dtype=torch.double)
    gradient = conv(ones[0][None], ones[1][None], (1, 1, 3, 3), options).flatten()
    assert met == {q for q in range(9) if float(gradient[q]) != 0}
