"""CIFAR ResNet-20 with last layers that are not one plain linear layer, to be passed by `--arch`.

`from_plain` gives each the weights of a plain network, so that it computes the same logits; only
those of `pruned` and of spectral norm differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tests.networks.cifar_resnet import CifarResNet, resnet20

RANK = 4


class Lora(nn.Module):
    """A linear layer and a product of two thin ones beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, RANK, bias=False)
        self.lora_B = nn.Linear(RANK, base.out_features, bias=False)
        with torch.no_grad():
            base.weight -= self.lora_B.weight @ self.lora_A.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.lora_B(self.lora_A(x))
        return y


class MergingLora(nn.Linear):
    """The same as parameters of one layer, which adds the product to its weight in eval mode, as
    loralib's layers do."""

    merged = False

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        self.lora_A = nn.Parameter(0.1 * torch.randn(RANK, base.in_features))
        self.lora_B = nn.Parameter(0.1 * torch.randn(base.out_features, RANK))
        with torch.no_grad():
            self.weight.copy_(base.weight - self.lora_B @ self.lora_A)
            self.bias.copy_(base.bias)

    def train(self, mode: bool = True) -> MergingLora:
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.lora_B @ self.lora_A).data
            self.merged = not mode
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if self.merged else y + x @ self.lora_A.T @ self.lora_B.T


class Distilled(CifarResNet):
    """Two heads whose mean gives the logits, as in a distilled DeiT."""

    def __init__(self, plain: CifarResNet) -> None:
        super().__init__(3)
        self.load_state_dict(plain.state_dict())
        self.head, self.head_dist = nn.Linear(64, 10), nn.Linear(64, 10)
        with torch.no_grad():
            noise = torch.randn(10, 64)
            for layer, sign in ((self.head, 1), (self.head_dist, -1)):
                layer.weight.copy_(self.linear.weight + sign * noise)
                layer.bias.copy_(self.linear.bias)
        del self.linear

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x))).mean((2, 3))
        y: Tensor = (self.head(x) + self.head_dist(x)) / 2
        return y


def _with_head(change: Callable[[nn.Linear], Any]) -> Callable[[CifarResNet], nn.Module]:
    def changed(plain: CifarResNet) -> nn.Module:
        found = change(plain.linear)
        if isinstance(found, nn.Module):
            plain.set_submodule("linear", found)
        return plain

    return changed


KINDS: dict[str, Callable[[CifarResNet], nn.Module]] = {
    "old_weight_norm": _with_head(nn.utils.weight_norm),
    "weight_norm": _with_head(parametrizations.weight_norm),
    "old_spectral_norm": _with_head(nn.utils.spectral_norm),
    "spectral_norm": _with_head(parametrizations.spectral_norm),
    "pruned": _with_head(lambda head: prune.l1_unstructured(head, "weight", amount=0.3)),
    "lora": _with_head(Lora),
    "merging_lora": _with_head(MergingLora),
    "distilled": Distilled,
}


def from_plain(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network of this kind that computes what a plain ResNet-20 does."""
    torch.manual_seed(0)
    plain = resnet20()
    plain.load_state_dict(tensors)
    assert isinstance(plain, CifarResNet)
    state = KINDS[kind](plain).state_dict()
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def _built(kind: str) -> nn.Module:
    plain = resnet20()
    assert isinstance(plain, CifarResNet)
    return KINDS[kind](plain)


def old_weight_norm() -> nn.Module:
    return _built("old_weight_norm")


def weight_norm() -> nn.Module:
    return _built("weight_norm")


def old_spectral_norm() -> nn.Module:
    return _built("old_spectral_norm")


def spectral_norm() -> nn.Module:
    return _built("spectral_norm")


def pruned() -> nn.Module:
    return _built("pruned")


def lora() -> nn.Module:
    return _built("lora")


def merging_lora() -> nn.Module:
    return _built("merging_lora")


def distilled() -> nn.Module:
    return _built("distilled")
