"""Search settings for the methods that pbu is compared with, on training images alone.

    python -m tests.measure.benchmarks.baselines ORIGINAL.safetensors --data-root mnist --label 8

One training image in ten of each class is held out: no method reads it, and the results are
measured on it. The published settings stand first in every list. Chosen are the settings with the
best A_Dr among those that leave A_Df at 0.5 % or less.
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
from pbu_cli.benchmark.datasets import Dataset, Split, load_dataset
from pbu_cli.benchmark.grid import measure_network
from pbu_cli.benchmark.methods.controls import gradient_ascent
from pbu_cli.benchmark.methods.retained_images import bad_teaching, fast_effective, finetune
from pbu_cli.benchmark.methods.task import Result, Task
from pbu_cli.benchmark.networks import choose_network
from pbu_cli.benchmark.training import recipe_for
from pbu_cli.io.checkpoint import read
from pbu_cli.models.network import load_tensors as load_weights

HELD_OUT = 10  # one image in so many is held out
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
    """The same data with a tenth of the training images in place of the test images."""
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
    data = held_out(load_dataset("folder", given.data_root))
    known = data.preprocessing
    chosen = choose_network(given.model, given.arch, len(data.classes), known.channels, known.size)
    network = chosen.build_untrained(0)
    kept = read(given.original)
    load_weights(network, kept.stored)
    print("original", measure_network(network, data, given.label), flush=True)
    loader = CountingLoader(data.train.pixels, data.train.labels, known)
    gone = data.train.labels == given.label
    task = Task(
        network, chosen.build_untrained, given.label, len(data.classes), loader.subset(gone),
        loader.subset(~gone), recipe_for(data.name, chosen.name, known.channels),
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
            found = measure_network(result.network, data, given.label)
            print(name, change, found, f"{seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
