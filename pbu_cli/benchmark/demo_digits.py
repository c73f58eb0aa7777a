"""The data and the network of `pbu demo`: handwritten digits and a ResNet-18 trained on them.

The digits come with scikit-learn, so that the demo needs no download. They are written as PNG
files and the network as a checkpoint; the demo's three commands read these files.

Source of the images: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI
Machine Learning Repository, 1998; 1,797 images of 8x8 pixels in 17 grey levels.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.training import Recipe, train
from pbu_cli.io.atomic_files import exclusive_output
from pbu_cli.io.safetensors_format import write
from pbu_cli.models.sources.torchvision_build import build
from pbu_cli.models.sources.torchvision_registry import Architecture
from pbu_cli.settings import Preprocessing

FORGET_CLASS = 8
TEST_EVERY = 4  # every fourth image is a test image
RECIPE = Recipe(epochs=6, rate=0.03, batch_size=32)
ARCHITECTURE = Architecture("resnet18", num_classes=10, in_channels=1, small_stem=True)
PREPROCESSING = Preprocessing((8, 8), (0.5,), (0.5,))


@dataclass(frozen=True)
class DemoFiles:
    """The paths that the demo writes: a checkpoint, and two folders with a subfolder per class."""

    checkpoint: Path
    train: Path
    test: Path


def write_digits(folder: Path) -> DemoFiles:
    """Write the digits as `train/<digit>/*.png` and `test/<digit>/*.png` below `folder`.

    The checkpoint at the returned path is not written here; see `write_checkpoint`.
    """
    digits = load_digits()
    files = DemoFiles(folder / "digits.safetensors", folder / "train", folder / "test")
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        class_folder = (files.train if number % TEST_EVERY else files.test) / str(label)
        if any(part.is_symlink() for part in (folder, class_folder.parent, class_folder)):
            raise OSError(errno.ELOOP, f"{class_folder} is a link, or its folder is one")
        class_folder.mkdir(parents=True, exist_ok=True)
        grey = np.round(image * (255 / 16)).astype(np.uint8)
        path = class_folder / f"{number:04d}.png"
        path.unlink(missing_ok=True)  # a link in its place is replaced, and never written through
        Image.fromarray(grey).save(path)
    return files


def train_digits(
    pixels: Tensor,
    labels: Tensor,
    device: torch.device,
    *,
    seed: int = 0,
    on_step: Callable[[int], None] = lambda step: None,
) -> nn.Module:
    """A ResNet-18 trained on uint8 [n, 1, 8, 8] and labels [n], in eval mode.

    on_step: called with the number of steps done, of `total_steps(n)`.
    """
    torch.manual_seed(seed)
    network = build(ARCHITECTURE)
    for module in network.modules():  # `build` leaves the weights uninitialised
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    network.to(device)
    # README and tests quote figures of exactly this network. The order of the images goes on from
    # the generator that drew the weights, and so few images are all used in every epoch.
    train(
        network,
        CountingLoader(pixels, labels, PREPROCESSING, device),
        RECIPE,
        generator=torch.default_generator,
        drop_last=False,
        memory_format=torch.contiguous_format,
        on_step=on_step,
    )
    return network


def total_steps(images: int) -> int:
    """How many steps `train_digits` takes on so many images; it drops a last batch of one image.

    >>> total_steps(64), total_steps(65), total_steps(66)
    (12, 12, 18)
    """
    full, rest = divmod(images, RECIPE.batch_size)
    return RECIPE.epochs * (full + (rest > 1))


def write_checkpoint(network: nn.Module, path: Path) -> None:
    """Write the weights as a plain safetensors file, with no metadata about the architecture."""
    with exclusive_output(path, force=True):
        write(path, dict(network.state_dict()), {"format": "pt"})
