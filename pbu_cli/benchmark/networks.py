"""The network of a benchmark: untrained networks that fit a data set's images and classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pbu_cli.errors import InvalidUsage, PbuError, printable
from pbu_cli.models.sources.own import user_module
from pbu_cli.models.sources.torchvision_build import initialised
from pbu_cli.models.sources.torchvision_registry import RESNETS, Architecture, registry

SMALL_STEM_UP_TO = 64  # pixels; a stride of 4 in the stem loses too much of smaller colour images
LARGER_SIZES = (32, 64, 224)  # tried in this order for a network that fails on smaller images


@dataclass(frozen=True)
class BenchmarkNetwork:
    """An architecture for one data set.

    name: as the table shows it. build_untrained: returns a new network in eval mode, its weights
    drawn by the seed. size: the image size that it takes. description: for the user to read.
    identity: differs between different networks; it is digested into the results folder's name.
    arch: the value of `--arch` for the user's own module. builder: torchvision's name for others.
    """

    name: str
    build_untrained: Callable[[int], nn.Module]
    size: tuple[int, int]
    description: str
    identity: str
    arch: str | None = None
    builder: str | None = None


def choose_network(
    model: str,
    arch: str | None,
    num_classes: int,
    channels: int,
    size: tuple[int, int],
    *,
    stem: str = "auto",
    fixed_size: bool = False,
) -> BenchmarkNetwork:
    """A torchvision classifier by name, or the user's own module, for images of this shape.

    stem: `small` is a 3x3 convolution at stride 1 without max-pool, `usual` the 7x7 at stride 2;
    `auto` gives ResNets the small one for colour images of at most 64 pixels. fixed_size: use
    exactly `size`. Otherwise, where the network fails on such images, the larger ones of
    LARGER_SIZES are tried. Raises InvalidUsage for an unknown name, a stem that the network does
    not have, and a network that fails on the images or gives other than one logit per class.
    """
    if arch is not None and ":" in arch:
        network = _own_network(arch, size)
        _check(network, num_classes, channels, size)
        return network
    name = arch or model
    if name not in registry():
        raise InvalidUsage(
            f"--model {printable(name)}: expected a torchvision classifier such as resnet34, or"
            " --arch FILE.py:FUNCTION"
        )
    if stem == "small" and not name.startswith(RESNETS):
        raise InvalidUsage(
            f"--stem small: only ResNets have a small stem, {name} does not; leave --stem out"
        )
    small = stem == "small" or (stem == "auto" and channels == 3 and max(size) <= SMALL_STEM_UP_TO)
    small = small and name.startswith(RESNETS)
    larger = [] if fixed_size else [(side, side) for side in LARGER_SIZES if side > max(size)]
    sizes = (size, *larger)
    for tried in sizes:
        network = _torchvision_network(name, num_classes, channels, tried, small)
        try:
            _check(network, num_classes, channels, tried)
        except PbuError:
            if tried == sizes[-1]:
                raise
            continue
        return network
    raise AssertionError("the last size returns or raises")


def _torchvision_network(
    name: str, num_classes: int, channels: int, size: tuple[int, int], small_stem: bool
) -> BenchmarkNetwork:
    only_size = size[0] if name.startswith(("vit", "maxvit")) else None
    architecture = Architecture(name, num_classes, channels, small_stem, only_size)
    stem = "" if not name.startswith(RESNETS) else ", 3x3 stem" if small_stem else ", usual stem"
    return BenchmarkNetwork(
        name,
        lambda seed: initialised(architecture, seed),
        size,
        f"{name} ({num_classes} classes, {channels} channels{stem}, {size[0]}x{size[1]})",
        repr(architecture),
        builder=name,
    )


def _own_network(arch: str, size: tuple[int, int]) -> BenchmarkNetwork:
    def build_untrained(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return user_module(arch).float().eval()

    location, _, function = arch.rpartition(":")
    path = Path(location)
    # A changed file is a different network. The source of an installed module is not digested.
    source = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else location
    return BenchmarkNetwork(
        function, build_untrained, size, arch, f"{source}:{function}", arch=arch
    )


@torch.no_grad()
def _check(
    network: BenchmarkNetwork, num_classes: int, channels: int, size: tuple[int, int]
) -> None:
    """Run an untrained network on two black images in training mode.

    BatchNorm in training mode needs at least two images where its maps are one pixel large.
    """
    shape = (2, channels, *size)
    try:
        logits = network.build_untrained(0).train()(torch.zeros(shape))
    except InvalidUsage:
        raise
    except Exception as error:  # torch and the user's code may raise any exception
        raise InvalidUsage(
            f"{printable(network.description)}: fails on images of"
            f" {'x'.join(map(str, shape[1:]))}: {type(error).__name__}:"
            f" {printable(error)[:160]}; pass another --size"
        ) from None
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (2, num_classes):
        found = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InvalidUsage(
            f"{printable(network.description)}: returns {found} for two images; expected"
            f" [2, {num_classes}], a logit for each class of the data set: pass another --arch"
        )
