"""The architecture of a benchmark: fresh networks that fit a data set's images and classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pbu_cli.errors import InvalidUsage, PbuError, printable
from pbu_cli.models.build import initialised
from pbu_cli.models.load import own_module
from pbu_cli.models.registry import RESNETS, Architecture, registry

LARGEST_SMALL = 64  # pixels: up to here a colour image loses too much in a stride of 4
SIZES = (32, 64, 224)  # tried in turn where a network has no place for the images' own size


@dataclass(frozen=True)
class BenchmarkNetwork:
    """name: what the table calls it. fresh: an untrained network, its weights drawn by a seed.

    arch: `--arch`, for a module of the user's own, and `builder` torchvision's name, for others.
    size: what its images have to have. shown: it in words. digest: what tells it from others.
    """

    name: str
    fresh: Callable[[int], nn.Module]
    size: tuple[int, int]
    shown: str
    digest: str
    arch: str | None = None
    builder: str | None = None


def choose(
    model: str,
    arch: str | None,
    num_classes: int,
    channels: int,
    size: tuple[int, int],
    *,
    stem: str = "auto",
    fixed: bool = False,
) -> BenchmarkNetwork:
    """A torchvision classifier by name, or the user's own, for images of this shape.

    stem: `small` is 3x3 at stride 1 without max-pool, `usual` the 7x7 at stride 2; `auto` gives
    ResNets the small one for colour images of at most 64 pixels. Unless the size is `fixed` by the
    user, the next of SIZES is taken where the network cannot take images so small.
    """
    if arch is not None and ":" in arch:
        candidate = _own(arch, size)
        _check(candidate, num_classes, channels, size)
        return candidate
    name = arch or model
    if name not in registry():
        raise InvalidUsage(
            f"--model {printable(name)}: expected a torchvision classifier such as resnet34, or"
            " --arch FILE.py:FUNCTION"
        )
    small = stem == "small" or (stem == "auto" and channels == 3 and max(size) <= LARGEST_SMALL)
    if stem == "small" and not name.startswith(RESNETS):
        raise InvalidUsage(f"--stem small: only ResNets have one, {name} has not")
    small = small and name.startswith(RESNETS)
    larger = [] if fixed else [(s, s) for s in SIZES if s > max(size)]
    for tried in (size, *larger):
        candidate = _torchvision(name, num_classes, channels, tried, small)
        try:
            _check(candidate, num_classes, channels, tried)
        except PbuError:
            if tried == (size, *larger)[-1]:
                raise
            continue
        return candidate
    raise AssertionError("the last size returns or raises")


def _torchvision(
    name: str, num_classes: int, channels: int, size: tuple[int, int], small: bool
) -> BenchmarkNetwork:
    one_size = size[0] if name.startswith(("vit", "maxvit")) else None
    architecture = Architecture(name, num_classes, channels, small, one_size)
    stem = "" if not name.startswith(RESNETS) else ", 3x3 stem" if small else ", usual stem"
    return BenchmarkNetwork(
        name,
        lambda seed: initialised(architecture, seed),
        size,
        f"{name} ({num_classes} classes, {channels} channels{stem}, {size[0]}x{size[1]})",
        repr(architecture),
        builder=name,
    )


def _own(arch: str, size: tuple[int, int]) -> BenchmarkNetwork:
    def fresh(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return own_module(arch).float().eval()

    place, _, function = arch.rpartition(":")
    path = Path(place)
    source = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else place
    return BenchmarkNetwork(function, fresh, size, arch, f"{source}:{function}", arch=arch)


@torch.no_grad()
def _check(
    candidate: BenchmarkNetwork, num_classes: int, channels: int, size: tuple[int, int]
) -> None:
    """One pass of black images, as many as BatchNorm needs in training mode."""
    shape = (2, channels, *size)
    try:
        answers = candidate.fresh(0).train()(torch.zeros(shape))
    except InvalidUsage:
        raise
    except Exception as error:  # torch raises nearly anything, user code anything
        raise InvalidUsage(
            f"{printable(candidate.shown)}: fails on images of {'x'.join(map(str, shape[1:]))}:"
            f" {type(error).__name__}: {printable(error)[:160]}; pass another --size"
        ) from None
    if not isinstance(answers, torch.Tensor) or tuple(answers.shape) != (2, num_classes):
        found = list(answers.shape) if isinstance(answers, torch.Tensor) else type(answers).__name__
        raise InvalidUsage(
            f"{printable(candidate.shown)}: answers {found}; expected [2, {num_classes}], a logit"
            " for each class of the data set"
        )
