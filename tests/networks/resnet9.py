"""The nine-layer ResNet of Page's DAWNBench entry (2018), made narrow: CIFAR-10 on a CPU.

Not a torchvision architecture: what `--arch tests/networks/resnet9.py:resnet9` is for. Its first layer
begins as a Haar transform of sums and differences of colours, each then normalised, as colours and
neighbours are so alike that learning that first costs epochs.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


def convolution(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()
    )


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = convolution(width, width)
        self.second = convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class Brightest(nn.Module):
    """The maximum of each channel, an eighth of it, which is Page's scale of the answers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=(2, 3)) / 8


def haar() -> nn.Sequential:
    """2 x 2 pixels of 3 colours to 12 numbers of which no two tell the same."""
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
            pool=Brightest(),
            head=nn.Linear(256, num_classes),
        )
    )
