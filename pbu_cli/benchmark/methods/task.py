"""What a method is given, and what it returns."""

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
    """The task to make `original` forget one class.

    original: the trained network in eval mode; a method must not change it. build_untrained:
    returns a network of the same architecture, its weights drawn by the seed. forget, retained:
    training images; empty for a method that does not read them. recipe: how the original was
    trained. arch, metadata: what `pbu unlearn` gets by `--arch` and in the checkpoint.
    """

    original: nn.Module
    build_untrained: Callable[[int], nn.Module]
    label: int
    num_classes: int
    forget: CountingLoader
    retained: CountingLoader
    recipe: Recipe
    seed: int = 0
    arch: str | None = None
    metadata: Mapping[str, str] | None = None

    def copy_original(self) -> nn.Module:
        """A copy of the original that the method may change."""
        return copy.deepcopy(self.original)


@dataclass(frozen=True)
class Result:
    """A network that should have forgotten the class.

    stage: tells several results of one run apart. unmasked: the network under the mask, where
    `network` only masks its output; whoever has the weights can take the mask off.
    """

    network: nn.Module
    stage: str = ""
    unmasked: nn.Module | None = None


class TaskSize(NamedTuple):
    """The numbers of forget images, retained images, classes, and epochs of the recipe."""

    forget: int
    retained: int
    classes: int
    epochs: int


@dataclass(frozen=True)
class Method:
    """A way to make a network forget a class.

    reads: which training images it is given. unlearn: a generator of results, the final one last;
    it works only while a result is asked for, so that its work can be timed. image_passes: about
    how many times it passes an image through a network, forward and backward, for the estimated
    time left. settings: stored with its results.
    """

    name: str
    reads: Reads
    unlearn: Callable[[Task], Iterator[Result]]
    image_passes: Callable[[TaskSize], float]
    settings: Mapping[str, Any]
