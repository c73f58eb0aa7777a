"""What every method is given, and what it gives back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import nn

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.training import Recipe

Reads = Literal["nothing", "forget", "retained", "both"]


@dataclass(frozen=True)
class Task:
    """Make `original` forget one class.

    original: the trained network, in eval mode, not to be changed. fresh: an untrained network of
    the same architecture, its weights drawn by the seed given. forget, retained: training images,
    empty for a method that does not say it reads them. recipe: how the original was trained.
    arch, metadata: what `pbu unlearn` is told of the checkpoint, by flag and in the file.
    """

    original: nn.Module
    fresh: Callable[[int], nn.Module]
    label: int
    num_classes: int
    forget: CountingLoader
    retained: CountingLoader
    recipe: Recipe
    seed: int = 0
    arch: str | None = None
    metadata: Mapping[str, str] | None = None

    def copied(self) -> nn.Module:
        """The original, to be changed."""
        return copy.deepcopy(self.original)


@dataclass(frozen=True)
class Result:
    """A network that should have forgotten; `stage` tells apart several of one run; `inside` is
    what whoever has the weights finds under a mask."""

    network: nn.Module
    stage: str = ""
    inside: nn.Module | None = None


class Extent(NamedTuple):
    """How much there is: forget and retained training images, classes, the recipe's epochs."""

    forget: int
    retained: int
    classes: int
    epochs: int


@dataclass(frozen=True)
class Method:
    """A way to forget.

    reads: the training images it is given. unlearn: the work; yields its results, the last one
    last, and does nothing while it is not asked for the next, so that it can be stopwatch. passes: how
    many images it will pass through a network, about: for the time left.
    """

    name: str
    reads: Reads
    unlearn: Callable[[Task], Iterator[Result]]
    passes: Callable[[Extent], float]
    settings: Mapping[str, Any]
