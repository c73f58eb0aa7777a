"""The protocol of a benchmark: what runs on which data set and network, and how far it is."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pbu_cli.benchmark.datasets import Dataset
from pbu_cli.benchmark.methods import find
from pbu_cli.benchmark.methods.task import TaskSize
from pbu_cli.benchmark.networks import BenchmarkNetwork
from pbu_cli.benchmark.training import Recipe
from pbu_cli.data.label_names import parse_label

ORIGINAL = "original"  # the name of the row for the network before any forgetting


@dataclass(frozen=True)
class BenchmarkPlan:
    """What a benchmark measures, and where the results go.

    labels: the classes to forget, each on its own. seeds: how many originals are trained, with
    the seeds 0, 1, ... output: the results folder is made below it. keep_networks: write every
    method's network too.
    """

    dataset: Dataset
    network: BenchmarkNetwork
    recipe: Recipe
    labels: tuple[int, ...]
    methods: tuple[str, ...]
    seeds: int
    output: Path
    device: torch.device
    keep_networks: bool = False

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that an original depends on, apart from its seed."""
        parts = (self.dataset.digest(), self.network.identity, self.recipe)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def folder(self) -> Path:
        """The results folder. Another data set, network or recipe has another folder."""
        name = f"{self.dataset.name}-{self.network.name}-{self.digest[:12]}"
        return self.output / name

    def grid(self) -> list[tuple[int, int, str]]:
        """(seed, label, method) of every cell, in the order in which they are computed."""
        rows = (ORIGINAL, *self.methods)
        return [(s, c, m) for s in range(self.seeds) for c in self.labels for m in rows]

    def image_passes(self, seed: int, label: int, method: str) -> int:
        """About how many times a cell passes an image through a network, forward and backward.

        This is the unit of the progress bar and of the estimated time left.
        """
        labels = self.dataset.train.labels
        forget = int((labels == label).sum())
        size = TaskSize(forget, len(labels) - forget, len(self.dataset.classes), self.recipe.epochs)
        measuring = len(self.dataset.test.labels) // 3  # a forward pass alone
        if method == ORIGINAL:
            # The first cell of a seed trains its original.
            trains = label == self.labels[0]
            return measuring + (self.recipe.epochs * len(labels) if trains else 0)
        return measuring + round(find(method).image_passes(size))

    def notes(self) -> list[tuple[str, str, str]]:
        """(what, value, source) of what is going to run, for the user to read."""
        data, grid = self.dataset, self.grid()
        counts = f"{len(data.train.labels):,} training, {len(data.test.labels):,} test"
        recipe = ", ".join(f"{key} {value}" for key, value in asdict(self.recipe).items())
        total = sum(self.image_passes(*cell) for cell in grid)
        cells = f"{len(grid)} cells, about {total:,} passes of an image"
        return [
            ("images", counts, f"{data.name}, {len(data.classes)} classes"),
            ("architecture", self.network.description, "trained here, from random weights"),
            ("recipe", recipe, f"one-cycle; {self.device}"),
            ("grid", cells, str(self.folder())),
        ]

    def document(self) -> dict[str, Any]:
        """The protocol for `--json`."""
        data = self.dataset
        return {
            "dataset": data.name,
            "images": {"train": len(data.train.labels), "test": len(data.test.labels)},
            "preprocessing": vars(data.preprocessing),
            "architecture": self.network.description,
            "recipe": asdict(self.recipe),
            "digest": self.digest,
            "classes": list(self.labels),
            "methods": list(self.methods),
            "seeds": self.seeds,
            "device": str(self.device),
        }

    def class_name(self, label: int) -> str:
        """The label and, where it says more, the name of the class."""
        name = self.dataset.classes[label]
        return name if name == str(label) else f"{label} {name}"


class GridProgress:
    """How much of a grid is done, counted in passes of an image, and how long the rest may take.

    total: the passes of the whole grid. cells: how many cells are done.
    """

    def __init__(self, plan: BenchmarkPlan) -> None:
        self._costs = [plan.image_passes(*cell) for cell in plan.grid()]
        self.total = sum(self._costs)
        self.cells = 0
        self._finished = self._computed = self._in_cell = 0
        self._start = time.perf_counter()

    @property
    def done(self) -> int:
        """The passes of the finished cells, and those counted so far in the present one."""
        return min(self._finished + self._in_cell, self.total)

    def advance(self, images: int) -> None:
        """Count images that the present cell has passed through a network."""
        self._in_cell += images

    def finish_cell(self, *, stored: bool) -> None:
        """Count the present cell as done. stored: it was on disk and took no time."""
        cost = self._costs[self.cells]
        self.cells += 1
        self._finished += cost
        self._computed += 0 if stored else cost
        self._in_cell = 0

    def seconds_left(self) -> float:
        """The time for the cells to come, at the pace of the cells computed so far."""
        pace = (time.perf_counter() - self._start) / max(self._computed, 1)
        return pace * (self.total - self._finished)


def parse_classes(text: str, dataset: Dataset) -> tuple[int, ...]:
    """The labels in a text such as `8,cat`, each once, in the order of the text.

    Raises InvalidUsage for a class that the data set does not have.
    """
    names, count = dataset.classes, len(dataset.classes)
    labels = [parse_label(part.strip(), "--classes", names, count) for part in text.split(",")]
    return tuple(dict.fromkeys(labels))


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(59), duration(3700)
    ('59 s', '1 h 01 min')
    """
    minutes = int(seconds) // 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
