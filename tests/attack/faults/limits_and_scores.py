"""Faults of scores and of the networks compared with, of limits, and of what reaches stderr."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence

import torch
from safetensors.torch import load_file, save_file

from tests.attack.faults.fault import CHECKPOINTS, TRIALS, Fault, Place

MNIST = CHECKPOINTS / "mnist_resnet34_fp16.safetensors"
MEAN_STD = ("--mean", "0.1307", "--std", "0.3081")
WRITTEN = {"mean": [0.1307], "std": [0.3081], "input_size": [1, 28, 28]}


def never(place: Place, name: str, classes: Sequence[int], **metadata: object) -> None:
    """The MNIST network that never predicts some classes, with metadata of pbu."""
    tensors = load_file(MNIST)
    for index in classes:
        tensors["fc.bias"][index] = -1e4
    facts = {"pbu": json.dumps({**WRITTEN, **metadata})} if metadata else {}
    save_file(tensors, place.folder / name, facts)


def some_images(place: Place, count: int = 30) -> None:
    """A few test images of every digit in `test/<digit>`."""
    for digit in range(10):
        folder = place.folder / "test" / str(digit)
        folder.mkdir(parents=True)
        for path in sorted((place.data / "test" / str(digit)).iterdir())[:count]:
            shutil.copy(path, folder)


def broken(place: Place) -> None:
    """Eights were to be forgotten; a second run took the threes too, and its metadata say both."""
    some_images(place)
    never(place, "twice.safetensors", [8, 3], forgotten=[3, 8])
    never(place, "clean.safetensors", [8], forgotten=[8])
    shutil.copy(MNIST, place.folder / "original.safetensors")


def other_architecture(place: Place) -> None:
    from torchvision.models import resnet18

    broken(place)
    network = resnet18(num_classes=10)
    network.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    save_file(network.state_dict(), place.folder / "resnet18.safetensors")


def size_4096(place: Place) -> None:
    network(place)
    shutil.copy(TRIALS / "config_size_4096.json", place.folder / "config.json")
    (place.folder / "config.json").chmod(0o644)


def metadata_4096(place: Place) -> None:
    some_images(place)
    save_file(load_file(MNIST), place.folder / "net.safetensors", {"input_size": "[1, 4096, 4096]"})


def noisy(place: Place) -> None:
    """A network at which torch warns."""
    some_images(place)
    code = (
        "import torch\n"
        "def net():\n"
        '    conv = torch.nn.Conv2d(1, 8, 2, padding="same")\n'
        "    return torch.nn.Sequential(conv, torch.nn.Flatten(), torch.nn.Linear(6272, 10))\n"
    )
    (place.folder / "net.py").write_text(code)
    scope: dict[str, object] = {}
    exec(code, scope)
    save_file(scope["net"]().state_dict(), place.folder / "net.safetensors")


def nothing_on_stderr(place: Place) -> None:
    command = ("fisher", "net.safetensors", "--forget", "test/8", "--label", "8")
    done = place.pbu(*command, "--arch", "net.py:net", "--dry-run", "-q", "--layers", "head")
    assert done.stderr == ""


def network(place: Place) -> None:
    some_images(place)
    shutil.copy(MNIST, place.folder / "net.safetensors")


def other_order(place: Place) -> None:
    """The result of `--forget test/3 --forget test/8`, to compare the one of `8 3` with."""
    network(place)
    command = ["unlearn", "net.safetensors", *MEAN_STD, "--fast", "--steps", "3", "-q"]
    place.pbu(*command, "--forget", "test/3", "--forget", "test/8", "-o", "38.safetensors")


def same_bytes(place: Place) -> None:
    one, other = (place.folder / f"{name}.safetensors" for name in ("38", "83"))
    assert one.read_bytes() == other.read_bytes()


def huge_fisher(place: Place) -> None:
    """A Fisher file in which one number is 3e38."""
    network(place)
    place.pbu("fisher", "net.safetensors", "--forget", "test/8", *MEAN_STD, "--layers", "last",
              "-o", "f.safetensors", "-q")  # fmt: skip
    from safetensors import safe_open

    path = place.folder / "f.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["fc.bias"][0] = 3e38
    save_file(tensors, path, metadata)


def evaluate(checkpoint: str, *more: str) -> tuple[str, ...]:
    images = ("--forget", "test/8", "--label", "8", "--retain", "test", "-q")
    return ("evaluate", checkpoint, *images, *MEAN_STD, *more)


def unlearn(*more: str) -> tuple[str, ...]:
    return (
        "unlearn",
        "net.safetensors",
        "--forget",
        "test/8",
        *more,
        "-o",
        "out.safetensors",
        "-q",
    )


ORIGINAL = ("--original", "original.safetensors")
TRAINED = ("--retrained", "original.safetensors")

FAULTS = [
    Fault(
        2, "a class lost by accident leaves A_Dr", evaluate("twice.safetensors", *ORIGINAL), 0,
        "class 3 counts in A_Dr", broken,
    ),
    Fault(
        2, "so does it without an original", evaluate("twice.safetensors"), 0,
        "class 3 counts in A_Dr", broken,
    ),
    Fault(
        2, "a required A_Dr holds without the lost class",
        evaluate("twice.safetensors", *ORIGINAL, "--require", "A_Dr>=97"), 5,
        "A_Dr is 8", broken,
    ),
    Fault(
        3, "a network as its own control",
        evaluate("clean.safetensors", *ORIGINAL, *TRAINED), 0,
        "--retrained has the same weights as the original", broken,
    ),
    Fault(
        3, "a retrained network that knows the class", evaluate("clean.safetensors", *TRAINED), 0,
        "--retrained recognises 100.0 % of the forget images", broken,
    ),
    Fault(
        3, "the original itself as retrained meets a criterion",
        evaluate("original.safetensors", *TRAINED, "--require", "A_Df~1"), 5,
        "A_Df of a retrained network is unknown", broken,
    ),
    Fault(
        3, "an original that does not know the class",
        evaluate("clean.safetensors", "--original", "twice.safetensors"), 0,
        "--original recognises only 0.0 % of the forget images", broken,
    ),
    Fault(
        3, "an original of another architecture",
        evaluate("clean.safetensors", "--original", "resnet18.safetensors"), 3,
        "has another architecture", other_architecture,
    ),
    Fault(
        8, "config.json asks for 4096 pixels", unlearn(*MEAN_STD), 3, "pass --size 4096x4096",
        size_4096,
    ),
    Fault(
        8, "metadata ask for 4096 pixels", unlearn(*MEAN_STD), 3, "pass --size 4096x4096",
        metadata_4096,
    ),
    Fault(
        8, "a batch of 2^63 images", unlearn("--batch-size", str(2**63)), 2, "--batch-size",
        network,
    ),
    Fault(
        8, "10^12 steps", unlearn("--steps", str(10**12)), 2, "--steps", network,
    ),
    Fault(
        8, "10^12 draws", unlearn("--estimator", "mc", "--draws", str(10**12)), 2, "--draws",
        network,
    ),
    Fault(
        14, "torch's warnings with --quiet",
        ("fisher", "net.safetensors", "--forget", "test/8", "--label", "8", "--arch", "net.py:net",
         "--dry-run", "-q", "--layers", "head"), 0, "dry run", noisy, nothing_on_stderr,
    ),
    Fault(
        14, "--forget a --forget b and b a differ",
        ("unlearn", "net.safetensors", *MEAN_STD, "--fast", "--steps", "3", "-q", "--forget",
         "test/8", "--forget", "test/3", "-o", "83.safetensors"), 5, "", other_order, same_bytes,
    ),
    Fault(
        14, "a Fisher value of 3e38 drops the term",
        unlearn(*MEAN_STD, "--fast", "--fisher", "f.safetensors"), 3,
        "which no sum of squared gradients reaches", huge_fisher,
    ),
    Fault(
        15, "a requirement that holds says nothing",
        evaluate("clean.safetensors", *ORIGINAL, "--require", "damage<=100"), 0,
        "from those of original.safetensors; no retained image was used", broken,
    ),
]  # fmt: skip
