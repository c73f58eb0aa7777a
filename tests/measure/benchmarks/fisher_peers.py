"""The steps that `fisher` compares: a plain step, and other ways to the Fisher diagonal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

Batch = tuple[Tensor, Tensor]


def build(name: str, size: int, batch: int, classes: int, device: str) -> tuple[nn.Module, Batch]:
    """`small_resnet34` is resnet34 with the 3x3 stem of small images, which keeps larger maps."""
    torch.manual_seed(0)
    options = {"image_size": size} if name.startswith("vit") else {}
    model = models.get_model(name.removeprefix("small_"), num_classes=classes, **options)
    if name.startswith("small_"):
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    x, labels = torch.randn(batch, 3, size, size), torch.randint(classes, (batch,))
    return model.eval().to(device), (x.to(device), labels.to(device))


def plain(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    F.cross_entropy(model(x), labels).backward()
    model.zero_grad(set_to_none=True)


def loop(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    total = [torch.zeros_like(p) for p in model.parameters()]
    for image, label in zip(x.split(1), labels.split(1), strict=True):
        gradients = torch.autograd.grad(
            F.cross_entropy(model(image), label), list(model.parameters())
        )
        for t, g in zip(total, gradients, strict=True):
            t.addcmul_(g, g)


def vmap(model: nn.Module, x: Tensor, labels: Tensor, chunk: int = 8) -> None:
    held = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    total = {name: torch.zeros_like(p) for name, p in held.items()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, {**parameters, **buffers}, (image[None],))
        return F.cross_entropy(logits, label[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    for some_x, some_labels in zip(x.split(chunk), labels.split(chunk), strict=True):
        for name, g in each(held, some_x, some_labels).items():
            total[name] += g.square().sum(0)


def nngeometry(model: nn.Module, x: Tensor, labels: Tensor, draws: int | None = None) -> None:
    """nngeometry's exact diagonal, or with draws its Monte Carlo estimate."""
    from nngeometry import metrics
    from nngeometry.object import PMatDiag
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(x, labels), batch_size=len(x))
    options: dict[str, Any] = {"variant": "classif_logits", "device": x.device}
    if draws is None:
        metrics.FIM(model, loader, PMatDiag, **options)
    else:
        metrics.FIM_MonteCarlo(model, loader, PMatDiag, trials=draws, **options)


STEPS: dict[str, Callable[[nn.Module, Tensor, Tensor], None]] = {
    "plain": plain,
    "loop": loop,
    "vmap": vmap,
    "nngeometry": nngeometry,
    "nngeometry-mc": partial(nngeometry, draws=1),
}
