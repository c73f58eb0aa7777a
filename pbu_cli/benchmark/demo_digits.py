"""The embedded default: real handwritten digits that come with scikit-learn and a ResNet-18
trained on them here, written as the files that the three commands work on.

Source of the images: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI
Machine Learning Repository, 1998; 1,797 images of 8x8 pixels in 17 grey levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pbu_cli.data.preprocessing import normalise
from pbu_cli.io.atomic_files import exclusive_output
from pbu_cli.io.safetensors_format import write
from pbu_cli.models.build import build
from pbu_cli.models.registry import Architecture
from pbu_cli.settings import Preprocessing

FORGOTTEN = 8
TEST_EVERY = 4  # every fourth image is kept for testing
EPOCHS, BATCH, RATE = 6, 32, 0.03
ARCHITECTURE = Architecture("resnet18", num_classes=10, in_channels=1, small_stem=True)
PREPROCESSING = Preprocessing((8, 8), (0.5,), (0.5,))


@dataclass(frozen=True)
class DemoFiles:
    """What the demo wrote: a checkpoint, and folders of PNGs by class."""

    checkpoint: Path
    train: Path
    test: Path


def write_digits(folder: Path) -> DemoFiles:
    """Write the digits as `train/<digit>/*.png` and `test/<digit>/*.png` below `folder`."""
    digits = load_digits()
    files = DemoFiles(folder / "digits.safetensors", folder / "train", folder / "test")
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = (files.train if number % TEST_EVERY else files.test) / str(label)
        place.mkdir(parents=True, exist_ok=True)
        grey = np.round(image * (255 / 16)).astype(np.uint8)
        Image.fromarray(grey).save(place / f"{number:04d}.png")
    return files


def train(
    pixels: Tensor,
    labels: Tensor,
    device: torch.device,
    *,
    seed: int = 0,
    done: Callable[[int], None] = lambda step: None,
) -> nn.Module:
    """A ResNet-18 trained on uint8 [n, 1, 8, 8] and labels [n]; `done` hears of every step."""
    torch.manual_seed(seed)
    network = build(ARCHITECTURE)
    for module in network.modules():  # `build` leaves weights uninitialised
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    network.to(device)
    inputs, labels = normalise(pixels.to(device), PREPROCESSING), labels.to(device)
    steps = total_steps(len(pixels))
    optimiser = torch.optim.SGD(
        network.parameters(), RATE, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    step = 0
    network.train()
    for _ in range(EPOCHS):
        for index in torch.randperm(len(pixels)).to(device).split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(network(inputs[index]), labels[index]).backward()
            optimiser.step()
            rate.step()
            step += 1
            done(step)
    return network.eval()


def total_steps(images: int) -> int:
    """How many batches `train` takes."""
    return EPOCHS * -(-images // BATCH)


def write_checkpoint(network: nn.Module, path: Path) -> None:
    """The trained weights as a plain safetensors file, without a word on what they are."""
    with exclusive_output(path, force=True):
        write(path, dict(network.state_dict()), {"format": "pt"})
