"""Search settings for the methods that pbu is compared with, on training images alone.

    python -m tests.measure.benchmarks.baselines ORIGINAL.safetensors --data-root mnist --label 8

One training image in ten of each class is held out: no method reads it, and the results are
measured on it. The published settings stand first in every list. Chosen are the settings with the
best A_Dr among those that leave A_Df at 0.5 % or less.

    python -m tests.measure.benchmarks.baselines CIFAR100_RESNET20.safetensors --label 8 \\
        --data-root cifar100 --arch tests/networks/cifar_resnet.py:resnet20_of_100 --measured 5 \\
        --methods boundary-shrink jit delete mu-mis pour
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
from torch import nn

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.datasets import Dataset, Split, load_dataset
from pbu_cli.benchmark.grid import measure_network
from pbu_cli.benchmark.methods.controls import gradient_ascent
from pbu_cli.benchmark.methods.forget_images import boundary_shrink, delete, jit, mu_mis, pour
from pbu_cli.benchmark.methods.retained_images import bad_teaching, fast_effective, finetune
from pbu_cli.benchmark.methods.task import Result, Task
from pbu_cli.benchmark.networks import choose_network
from pbu_cli.benchmark.training import recipe_for
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.inputs.loaded_model import load_model
from pbu_cli.settings import InputOptions

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
    "boundary-shrink": (
        boundary_shrink,
        [
            {"rate": 1e-5, "training_mode": True},
            *({"rate": rate, "training_mode": False} for rate in (1e-5, 1e-4, 1e-3)),
        ],
    ),
    "jit": (jit, [{"rate": 3e-4}, {"rate": 1e-4}, {"rate": 5e-5, "epochs": 2}]),
    "delete": (delete, [{"rate": 1e-3, "training_mode": mode} for mode in (True, False)]),
    "mu-mis": (mu_mis, [{"rate": rate} for rate in (2e-4, 5e-4, 3e-3)]),
    "pour": (pour, [{"rate": rate} for rate in (1e-5, 3e-5, 1e-3)]),
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


def first_of_each_class(split: Split, count: int) -> Split:
    """The first images of each class, at most `count`."""
    kept = torch.cat([torch.where(split.labels == c)[0][:count] for c in split.labels.unique()])
    return Split(split.pixels[kept], split.labels[kept])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("original", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--model", default="resnet34")
    parser.add_argument("--arch")
    parser.add_argument("--label", type=int, default=8)
    parser.add_argument("--per-class", type=int, help="read only so many images of each class")
    parser.add_argument("--measured", type=int, help="of the held-out images, so many of a class")
    parser.add_argument("--methods", nargs="*", default=list(CANDIDATES))
    given = parser.parse_args()
    data = held_out(load_dataset("folder", given.data_root, per_class=given.per_class))
    if given.measured is not None:
        data = replace(data, test=first_of_each_class(data.test, given.measured))
    known, name = data.preprocessing, (given.arch or given.model).rpartition(":")[2]
    options = InputOptions(given.arch, device="cpu")
    network = load_model(given.original, options, InferenceLog()).network.module.eval()

    def build_untrained(seed: int) -> nn.Module:  # for bad-teaching alone
        shape = (len(data.classes), known.channels, known.size)
        return choose_network(given.model, given.arch, *shape).build_untrained(seed)

    print("original", measure_network(network, data, given.label), flush=True)
    loader = CountingLoader(data.train.pixels, data.train.labels, known)
    gone = data.train.labels == given.label
    task = Task(
        network, build_untrained, given.label, len(data.classes), loader.subset(gone),
        loader.subset(~gone), recipe_for(data.name, name, known.channels),
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
            *_, result = work()
            seconds = time.perf_counter() - start
            found = measure_network(result.network, data, given.label)
            print(name, change, found, f"{seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
