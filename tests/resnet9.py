"""The nine-layer ResNet of Page's DAWNBench entry (2018), at half its width: CIFAR-10 in minutes.

Not a torchvision architecture: what `--arch tests/resnet9.py:resnet9` is for. Pooling to one mean
a channel stands in for his maximum, and no scale follows the head.
"""

from __future__ import annotations

from collections import OrderedDict

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


def resnet9(width: int = 32, num_classes: int = 10) -> nn.Module:
    w = width
    return nn.Sequential(
        OrderedDict(
            stem=convolution(3, w),
            layer1=nn.Sequential(convolution(w, 2 * w), nn.MaxPool2d(2), Residual(2 * w)),
            layer2=nn.Sequential(convolution(2 * w, 4 * w), nn.MaxPool2d(2)),
            layer3=nn.Sequential(convolution(4 * w, 8 * w), nn.MaxPool2d(2), Residual(8 * w)),
            pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            head=nn.Linear(8 * w, num_classes),
        )
    )
