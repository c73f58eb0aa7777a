"""The search for the settings of the methods that pbu is compared with, on training images alone.

    python -m tests.measure.benchmarks.baselines ORIGINAL.safetensors --data-root mnist --label 8

One training image in ten of each class is held out of everything that a method is handed, and
measured on. The settings as published stand first in every list; what is chosen are those that
leave at most 0.5 % of the held-out class and, of those, have the best A_Dr.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.datasets import Dataset, Split, load
from pbu_cli.benchmark.grid import measures
from pbu_cli.benchmark.methods import bad_teaching, fast_effective, finetune, gradient_ascent
from pbu_cli.benchmark.methods.task import Result, Task
from pbu_cli.benchmark.networks import choose
from pbu_cli.benchmark.training import recipe_for
from pbu_cli.io.checkpoint import read
from pbu_cli.models.build import load as load_weights

HELD_OUT = 10  # one image in so many
CANDIDATES: dict[str, tuple[Any, list[dict[str, float]]]] = {
    "fast-effective": (
        fast_effective,
        [
            {"impair_rate": 0.02, "repair_rate": 0.01},
            {"impair_rate": 0.002, "repair_rate": 0.001},
            {"impair_rate": 5e-4, "repair_rate": 5e-4},
        ],
    ),
    "bad-teaching": (bad_teaching, [{"rate": 1e-4}, {"rate": 1e-3}]),
    "gradient-ascent": (gradient_ascent, [{"rate": 1e-5}, {"rate": 1e-4}, {"rate": 1e-6}]),
    "finetune": (finetune, [{"rate": 1e-3}, {"rate": 1e-4}]),
}


def held_out(data: Dataset) -> Dataset:
    """The same, its training images cut in two: nine tenths to learn from, a tenth to test on."""
    pixels, labels = data.train.pixels, data.train.labels
    away = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        away[torch.where(labels == label)[0][::HELD_OUT]] = True
    return replace(
        data, train=Split(pixels[~away], labels[~away]), test=Split(pixels[away], labels[away])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("original", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--model", default="resnet34")
    parser.add_argument("--arch")
    parser.add_argument("--label", type=int, default=8)
    parser.add_argument("--methods", nargs="*", default=list(CANDIDATES))
    given = parser.parse_args()
    data = held_out(load("folder", given.data_root))
    known = data.preprocessing
    candidate = choose(given.model, given.arch, len(data.classes), known.channels, known.size)
    network = candidate.fresh(0)
    kept = read(given.original)
    load_weights(network, kept.stored_names(kept.tensors))
    print("original", measures(network, data, given.label), flush=True)
    feed = CountingLoader(data.train.pixels, data.train.labels, known)
    gone = data.train.labels == given.label
    task = Task(
        network, candidate.fresh, given.label, len(data.classes), feed.chosen(gone),
        feed.chosen(~gone), recipe_for(data.name, candidate.name, known.channels),
    )  # fmt: skip
    for name in given.methods:
        module, changes = CANDIDATES[name]
        for change in changes:
            settings = replace(module.SETTINGS, **change)
            work: Callable[[], Iterator[Result]] = partial(
                module.unlearn, replace(task, original=copy.deepcopy(network)), settings
            )
            torch.manual_seed(0)
            start = time.perf_counter()
            (result,) = work()
            seconds = time.perf_counter() - start
            found = measures(result.network, data, given.label)
            print(name, change, found, f"{seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
