"""The protocol of a benchmark: which methods, classes and seeds run on which data set and network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from pbu_cli.benchmark.datasets import Dataset
from pbu_cli.benchmark.methods import find
from pbu_cli.benchmark.methods.task import Extent
from pbu_cli.benchmark.networks import BenchmarkNetwork
from pbu_cli.benchmark.training import Recipe

ORIGINAL = "original"  # the row that the others start from


@dataclass(frozen=True)
class BenchmarkPlan:
    """What is to be measured, and where it goes. labels: the classes to forget, one at a time."""

    dataset: Dataset
    candidate: BenchmarkNetwork
    recipe: Recipe
    labels: tuple[int, ...]
    methods: tuple[str, ...]
    seeds: int
    out: Path
    device: torch.device
    keep: bool = False

    @cached_property
    def digest(self) -> str:
        """Of all that an original depends on but its seed."""
        parts = (self.dataset.digest(), self.candidate.digest, self.recipe)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def folder(self) -> Path:
        name = f"{self.dataset.name}-{self.candidate.name}-{self.digest[:12]}"
        return self.out / name

    def grid(self) -> list[tuple[int, int, str]]:
        """(seed, label, method), in the order they are worked off: what is cheap to have first."""
        rows = (ORIGINAL, *self.methods)
        return [(s, c, m) for s in range(self.seeds) for c in self.labels for m in rows]

    def passes(self, seed: int, label: int, method: str) -> int:
        """About how many images a cell passes through a network: the unit of the progress."""
        labels = self.dataset.train.labels
        forget = int((labels == label).sum())
        size = Extent(forget, len(labels) - forget, len(self.dataset.classes), self.recipe.epochs)
        measuring = len(self.dataset.test.labels) // 3  # forward alone
        if method == ORIGINAL:
            first = label == self.labels[0]
            return measuring + (self.recipe.epochs * len(labels) if first else 0)
        return measuring + round(find(method).passes(size))
