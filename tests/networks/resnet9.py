"""The nine-layer ResNet of Page's DAWNBench entry (2018), made narrow: CIFAR-10 on a CPU.

It is no torchvision architecture: pass `--arch tests/networks/resnet9.py:resnet9`. Its first layer
is initialised as a Haar transform: sums and differences of the colours of neighbouring pixels, each
then normalised. Colours and neighbours are highly correlated, and learning that takes epochs.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = convolution(width, width)
        self.second = convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class ScaledMaximum(nn.Module):
    """An eighth of the maximum of each channel, which is Page's scale of the logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=(2, 3)) / 8


def haar() -> nn.Sequential:
    """2 x 2 pixels of 3 colours to 12 linearly independent numbers."""
    stem = nn.Sequential(nn.Conv2d(3, 12, 2, bias=False), nn.BatchNorm2d(12))
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    with torch.no_grad():
        stem[0].weight.copy_(
            torch.einsum("ck,ay,bx->cabkyx", colours, pair, pair).reshape(12, 3, 2, 2) / 4
        )
    return stem


def resnet9(num_classes: int = 10) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            stem=haar(),
            layer1=nn.Sequential(convolution(12, 64), nn.MaxPool2d(2), Residual(64)),
            layer2=nn.Sequential(convolution(64, 256), nn.MaxPool2d(2)),
            layer3=nn.Sequential(convolution(256, 256), nn.MaxPool2d(2), Residual(256)),
            pool=ScaledMaximum(),
            head=nn.Linear(256, num_classes),
        )
    )
