"""Kernels in channels-last format: which networks, how long, and that nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from pbu_cli.models.kernels.channels_last import contiguous, put_channels_last
from tests.conftest import Ran

LARGE, SMALL = (97, 97), (96, 96)


def is_last(model: nn.Module) -> bool:
    kernels = [p for p in model.parameters() if p.dim() == 4 and p[0, 0].numel() > 1]
    found = {p.is_contiguous(memory_format=torch.channels_last) for p in kernels}
    assert len(found) == 1
    return found.pop()


def small(*behind: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), *behind).eval()


POOLED = (nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(("size", "last"), [(LARGE, True), (SMALL, False), ((200, 96), False)])
def test_a_network_for_large_images_is_stored_channels_last(size: Any, last: bool) -> None:
    model = small(*POOLED)
    before, x = copy.deepcopy(model), torch.randn(2, 3, *size)
    put_channels_last(model, 3, size)
    assert is_last(model) == last
    torch.testing.assert_close(model(x), before(x))
    for found, expected in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(found, expected)


class Views(nn.Module):
    """Depends on the memory format of its maps: raises, or gives something else."""

    def __init__(self, quietly: bool) -> None:
        super().__init__()
        self.quietly = quietly

    def forward(self, x: Tensor) -> Tensor:
        if self.quietly:
            return torch.as_strided(x, (len(x), 3), (x[0].numel(), 1))
        return x.view(len(x), -1)[:, :3]


class Tied(nn.Module):
    """Two parameters share memory."""

    def __init__(self, other: nn.Module, size: int) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 3, size), other
        weight = other.get_parameter("weight")
        weight.data = self.one.weight.data.view(weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        z = self.one(x)
        return self.other(z).mean((2, 3)) if z.dim() == self.other.weight.dim() else z.mean((2, 3))


class ViewsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.view(len(g), -1).view_as(g)


class Backward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ViewsBackward.apply(x)


class Particular(nn.Module):
    """Takes only images in [0, 1], and has a buffer that has no channels-last format."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.zeros(1, 1, 1, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        assert bool(((x >= 0) & (x <= 1)).all())
        return x

    def to(self, device: Any) -> nn.Module:  # type: ignore[override]
        return super().to(device)


def test_a_network_with_special_inputs_and_buffers_is_stored_channels_last() -> None:
    model = nn.Sequential(Particular(), *small(*POOLED)).eval()
    put_channels_last(model, 3, LARGE)
    assert is_last(model)


class Refuses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert not x.any(), "black images alone"
        return x


@pytest.mark.parametrize(
    "model",
    [
        small(Views(False)),
        small(Views(True)),
        nn.Sequential(*small()[:1], Backward(), *small()[1:], *POOLED).eval(),
        Tied(nn.Conv2d(3, 3, 3), 3).eval(),
        Tied(nn.Linear(3, 3), 1).eval(),
        nn.Sequential(Refuses(), *small(*POOLED)).eval(),
    ],
)
def test_a_network_that_depends_on_its_memory_format_keeps_it(model: Any) -> None:
    x = torch.zeros(2, 3, *LARGE)
    before = model(x)
    shared = len({p.data_ptr() for p in model.parameters()})
    put_channels_last(model, 3, LARGE)
    assert all(p.is_contiguous() for p in model.parameters())
    assert torch.equal(model(x), before)
    assert len({p.data_ptr() for p in model.parameters()}) == shared


def test_a_network_without_kernels_is_left_alone() -> None:
    put_channels_last(nn.Sequential(nn.Flatten(), nn.Linear(3 * 97 * 97, 2)), 3, LARGE)


def test_contiguous_restores_the_format_even_after_an_error() -> None:
    model = small(*POOLED)
    put_channels_last(model, 3, LARGE)
    kernel = model[0].weight

    def fail() -> None:
        assert not is_last(model)
        assert model[0].weight is kernel
        raise RuntimeError

    with pytest.raises(RuntimeError), contiguous(model):
        fail()
    assert is_last(model)


@pytest.mark.slow
def test_tensors_are_written_in_the_order_of_the_checkpoint(
    pbu: Callable[..., Ran], tmp_path: Path
) -> None:
    """At 97 pixels the network is stored channels last while it trains."""
    torch.manual_seed(0)
    model = resnet18(num_classes=3).eval()
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    (tmp_path / "class1").mkdir()
    draw = torch.Generator().manual_seed(0)
    for n in range(4):
        pixels = torch.randint(256, (97, 97, 3), generator=draw, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "class1" / f"{n}.png")
    with torch.no_grad():
        label = int(model(torch.zeros(1, 3, 97, 97)).argmax())
    out = tmp_path / "out.safetensors"
    done = pbu("unlearn", "--fast", path, "--forget", tmp_path / "class1", "--label", label,
               "--size", "97", "--steps", "2", "-o", out, "-q", "--layers", "all")  # fmt: skip
    assert done.code in (0, 5), done.err
    before, after = load_file(path), load_file(out)
    assert {name: t.shape for name, t in after.items()} == {n: t.shape for n, t in before.items()}
    moved = {name for name, t in after.items() if not torch.equal(t, before[name])}
    assert "layer1.0.conv1.weight" in moved
    step = max(float((after[n] - before[n]).abs().max()) for n in moved)
    assert step < 0.1, "a kernel was written in another order"
