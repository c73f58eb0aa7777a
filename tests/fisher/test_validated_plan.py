"""Crops of kernels are taken where they are safe, and the model is left as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pbu_cli.fisher.diagonal import fisher_diagonal
from tests.fisher.fisher_oracle import LABELS, close, empirical, fisher_loop, strategies_of
from tests.fisher.networks import images, small


def test_the_model_is_left_as_it_was() -> None:
    model = small()
    model.train()
    model.layer2.eval()
    model.conv1.weight.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    keys = set(vars(model))
    found = empirical(model, images(32))
    assert modes == [module.training for module in model.modules()]
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all((p.grad is None) == (p is not model.fc.weight) for p in model.parameters())
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))
    assert torch.equal(random, torch.get_rng_state())
    assert keys == set(vars(model))
    assert torch.backends.mha.get_fastpath_enabled()
    assert float(found["conv1.weight"].sum()) > 0
    assert not any(value.requires_grad for value in found.values())


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    model = small().train()
    with pytest.raises(RuntimeError):
        empirical(model, images(32, channels=2))
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_a_gpu_does_not_round_to_tf32_meanwhile_and_may_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", True)
    seen: list[bool] = []
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    fisher_diagonal(model, [(torch.ones(1, 2), torch.tensor([0]))])
    assert seen
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32


def test_what_only_meets_padding_is_not_multiplied() -> None:
    model, x, seen = small(), images(2), set[torch.Size]()  # maps of one pixel
    conv = model.layer3.conv1
    kernel = conv.weight
    hook = conv.register_forward_hook(lambda module, *_: seen.add(module.weight.shape))
    found = empirical(model, x)
    hook.remove()
    assert seen == {kernel.shape, torch.Size([8, 8])}
    assert conv.weight is kernel
    assert close(found, fisher_loop(model, x, LABELS, "empirical"))
    assert strategies_of(model, x)["layer3.conv1.weight"] == "linear"
    assert strategies_of(model, images(32))["layer3.conv1.weight"] == "conv"


class Gated(nn.Module):
    """Reads a kernel outside the convolution; the logits do not show it while the head is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)
        nn.init.zeros_(self.fc.weight)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x) * self.conv.weight.square().sum()
        return self.fc(maps.mean((2, 3)))


class Named(nn.Module):
    """Calls its convolution with a keyword argument."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(input=x).mean((2, 3)))


@pytest.mark.parametrize("kind", [Gated, Named])
def test_kernels_that_cannot_be_cropped(kind: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = kind().double(), images(1)
    assert close(empirical(model, x), fisher_loop(model, x, LABELS, "empirical"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_scripted_modules() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Flatten(), nn.Linear(3, 4)).double()
    expected = fisher_loop(model, images(1), LABELS, "empirical")
    assert close(empirical(torch.jit.script(model), images(1)), expected)
