"""Another class forgotten: repeated runs, votes, sizes, names and stems that are taken wrongly."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.demo_digits import (
    ARCHITECTURE,
    PREPROCESSING,
    RECIPE,
    write_checkpoint,
    write_digits,
)
from pbu_cli.benchmark.training import train
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import list_groups, split_by_subfolder
from pbu_cli.models.sources.torchvision_build import initialised
from tests.attack.faults.fault import CHECKPOINTS, TRIALS, Fault, Place

NETWORK = CHECKPOINTS / "cifar10_resnet20_original.safetensors"
MNIST = CHECKPOINTS / "mnist_resnet34_fp16.safetensors"
ARCH = ("--arch", Path(__file__).resolve().parents[2] / "networks" / "cifar_resnet.py:resnet20")
UNLEARN = ("unlearn", "ship.unlearned.safetensors", "--fast", *ARCH)


def copy_images(place: Place, source: str, name: str, count: int = 300, skip: int = 0) -> None:
    """Copy images of a folder of the data into the folder `name` of the place."""
    (place.folder / name).mkdir()
    for path in islice(sorted((place.data / source).iterdir()), skip, skip + count):
        shutil.copy(path, place.folder / name)


def forgotten_ship(place: Place) -> None:
    """`ship.unlearned.safetensors`, and ships in the folders `ship` (those of the run), `8` and
    `others`."""
    shutil.copy(NETWORK, place.folder / "ship.safetensors")
    copy_images(place, "train/ship", "ship")
    copy_images(place, "train/ship", "8", skip=300)
    copy_images(place, "train/ship", "others", skip=600)
    done = place.pbu("unlearn", "ship.safetensors", "--fast", *ARCH, "--forget", "ship")
    assert done.returncode == 0, done.stderr


def only(place: Place) -> None:
    """Nothing was written."""
    found = {path.name for path in place.folder.iterdir() if path.is_file()}
    assert found <= {"ship.safetensors", "ship.unlearned.safetensors"}, found


def cats(place: Place) -> None:
    shutil.copy(NETWORK, place.folder / "net.safetensors")
    copy_images(place, "train/cat", "images")


def odd_sizes(place: Place) -> None:
    shutil.copy(NETWORK, place.folder / "net.safetensors")
    shutil.copytree(TRIALS / "odd60n" / "ship", place.folder / "ship")


def twice_the_size(place: Place) -> None:
    """Trucks of 64x64 pixels, which a network of 32x32 takes for cats."""
    from PIL import Image

    shutil.copy(NETWORK, place.folder / "net.safetensors")
    (place.folder / "images").mkdir()
    for path in islice(sorted((place.data / "train/truck").iterdir()), 200):
        with Image.open(path) as image:
            image.resize((64, 64)).save(place.folder / "images" / f"{path.stem}.png")


def eights_called_three(place: Place) -> None:
    shutil.copy(MNIST, place.folder / "net.safetensors")
    copy_images(place, "train/8", "3")


def pooled_stem(place: Place) -> None:
    """A ResNet-18 whose 3x3 stem has a max-pool, trained on digits."""
    files = write_digits(place.folder / "digits")
    groups = split_by_subfolder(list_groups([str(files.train)])[0])
    images = decode(groups, channels=1)
    network = initialised(ARCHITECTURE, seed=0)
    network.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
    loader = CountingLoader(images.pixels, images.group, PREPROCESSING, torch.device("cpu"))
    train(network, loader, RECIPE, generator=torch.Generator().manual_seed(0))
    write_checkpoint(network.eval(), files.checkpoint)


def accurate(place: Place) -> None:
    found = json.loads((place.folder / "digits" / "run.json").read_text())
    scores = found["predicate"]["evaluations"][0]["scores"]
    assert scores[0]["a_dr"] > 90, scores


FAULTS = [
    Fault(1, "a run repeated, label by vote", (*UNLEARN, "--forget", "ship"), 0,
          "already forgotten", forgotten_ship, only),
    Fault(1, "a run repeated, other images of the class", (*UNLEARN, "--forget", "others"), 0,
          "already forgotten", forgotten_ship, only),
    Fault(1, "a run repeated, folder named by its class", (*UNLEARN, "--forget", "8"), 0,
          "already forgotten", forgotten_ship, only),
    Fault(1, "a run repeated in place, label given",
          (*UNLEARN, "--forget", "ship", "--label", 8, "--force", "-o",
           "ship.unlearned.safetensors"), 0, "already forgotten", forgotten_ship, only),
    Fault(1, "a vote of 77 % is taken for the label",
          ("unlearn", "net.safetensors", "--fast", *ARCH, "--forget", "images"), 4,
          "expected 90 % or more", cats),
    Fault(16, "one image of another size of 71",
          ("unlearn", "net.safetensors", "--fast", *ARCH, "--forget", "ship", "--yes"), 0,
          "Forgot class 8", odd_sizes),
    Fault(16, "images of twice the size of the training",
          ("unlearn", "net.safetensors", "--fast", *ARCH, "--forget", "images"), 4, "--size",
          twice_the_size),
    Fault(16, "eights in a folder called 3",
          ("unlearn", "net.safetensors", "--fast", "--forget", "3"), 4,
          "look at the images and pass --label", eights_called_three),
    Fault(16, "a 3x3 stem with a max-pool is run without it",
          ("evaluate", "digits/digits.safetensors", "--forget", "digits/test/8", "--retain",
           "digits/test", "--record", "digits/run.json"), 0, "max-pool", pooled_stem, accurate),
]  # fmt: skip
