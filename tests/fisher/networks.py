"""Small classifiers of every family, with random weights in float64."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from tests.fisher.fisher_oracle import randomised

# By family: how to make a classifier of four classes, and the side of its images in pixels.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (lambda: models.ResNet(BasicBlock, [1, 1, 1, 1], 4), 32),
    "resnext": (
        lambda: models.ResNet(Bottleneck, [1, 1, 1, 1], 4, groups=4, width_per_group=4),
        32,
    ),
    "densenet": (lambda: models.DenseNet(8, (2, 2, 2), 8, num_classes=4), 32),
    "convnext": (
        lambda: models.ConvNeXt(
            [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)], num_classes=4
        ),
        32,
    ),
    "vit": (lambda: models.VisionTransformer(16, 4, 2, 2, 16, 24, num_classes=4), 16),
    "swin": (
        lambda: models.SwinTransformer([2, 2], 8, [2, 2], [2, 4], [2, 2], num_classes=4),
        20,
    ),
    "swin_v2": (
        lambda: models.SwinTransformer(
            [2, 2],
            8,
            [2, 2],
            [2, 4],
            [2, 2],
            num_classes=4,
            block=SwinTransformerBlockV2,
            downsample_layer=PatchMergingV2,
        ),
        20,
    ),
    "maxvit": (
        lambda: models.MaxVit((32, 32), 8, 2, [8, 16], [1, 1], 8, 0.0, num_classes=4),
        32,
    ),
    "efficientnet": (
        lambda: models.EfficientNet(
            [FusedMBConvConfig(2, 3, 2, 8, 8, 1), MBConvConfig(4, 5, 2, 8, 16, 2)],
            0.0,
            num_classes=4,
            last_channel=32,
        ),
        32,
    ),
    "regnet": (
        lambda: models.RegNet(
            BlockParams.from_init_params(4, 16, 8.0, 2.0, 8, se_ratio=0.25), num_classes=4
        ),
        32,
    ),
    "mobilenet": (lambda: models.mobilenet_v3_small(num_classes=4), 32),
    "mnasnet": (lambda: models.mnasnet0_5(num_classes=4), 32),
    "shufflenet": (lambda: models.shufflenet_v2_x0_5(num_classes=4), 32),
    "squeezenet": (lambda: models.squeezenet1_1(num_classes=4), 32),
}


def images(size: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, channels, size, size, generator=generator, dtype=torch.double)


def small() -> Any:
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        "bn1": nn.BatchNorm2d(8),
        "relu": nn.ReLU(inplace=True),
        "layer2": BasicBlock(8, 8),
        "layer3": BasicBlock(8, 8),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "fc": nn.Linear(8, 4),
    }
    return randomised(nn.Sequential(OrderedDict(parts)))


def vit() -> nn.Module:
    torch.manual_seed(0)
    return randomised(models.VisionTransformer(16, 4, 3, 2, 16, 24, num_classes=4))
