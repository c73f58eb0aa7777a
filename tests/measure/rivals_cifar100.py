"""The methods of `pbu benchmark` that read the forget images alone, class by class, on CIFAR-100.

    python -m tests.measure.rivals_cifar100 IMAGES --classes bear --out rivals.csv
    python -m tests.measure.rivals_cifar100 IMAGES --classes all --seeds 3 --methods pbu,pour,mu-mis

IMAGES holds CIFAR-100 as `train/<class>/` and `test/<class>/`. The original is
`cifar100_resnet20.safetensors` in ../shared, or `--original`. Every method forgets all training
images of the class, with the settings of the benchmark. The figures are of the test split.

A row of the CSV file: the class, the method with its stage, the seed, A_Df and A_Dr in percent; the
change of the accuracy of the retained class that loses most against the head mask, in points, and
its name; the seconds of the method; the peak resident memory of the process during it, in MB, with
Python, torch and the images. Rows that are in the file already are not measured again.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.datasets import Split
from pbu_cli.benchmark.methods import find, parse_methods
from pbu_cli.benchmark.methods.task import Method, Task
from pbu_cli.benchmark.training import recipe_for
from pbu_cli.data.normalization_inference import NORMALISATIONS
from pbu_cli.data.preprocessing import image_logits
from pbu_cli.evaluation.metrics import accuracy, accuracy_per_class
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import list_groups
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.inputs.loaded_model import load_model
from pbu_cli.settings import InputOptions, Preprocessing
from tests.measure.archives import SHARED

ORIGINAL = SHARED / "checkpoints" / "cifar100_resnet20.safetensors"
NETWORKS = Path(__file__).resolve().parents[1] / "networks" / "cifar_resnet.py"
ARCH = f"{NETWORKS}:resnet20_of_100"
METHODS = "head-mask,boundary-shrink,jit,delete,mu-mis,pour,pbu"
MASK = "head-mask"
SIZE = (32, 32)
PREPROCESSING = Preprocessing(SIZE, *NORMALISATIONS["CIFAR-100"])
COLUMNS = (
    "class", "method", "seed", "a_df", "a_dr", "worst_change", "worst_class", "seconds", "peak_mb",
)  # fmt: skip
Row = dict[str, str]


@dataclass(frozen=True)
class Measured:
    """The figures of one network: in percent, and by retained class."""

    a_df: float
    a_dr: float
    by_class: dict[int, float]


def images_of(folder: Path, classes: list[str]) -> Split:
    """The images of these classes; their labels count from 0 in the order of `classes`."""
    groups = list_groups([str(folder / name) for name in classes])
    images = decode(groups, channels=3, size=SIZE)
    return Split(images.pixels, images.group)


def task_for(
    network: torch.nn.Module, images: Path, names: list[str], label: int, seed: int
) -> Task:
    """All training images of the class, and none of the others."""
    pixels = images_of(images / "train", [names[label]]).pixels
    forget = CountingLoader(pixels, torch.full((len(pixels),), label), PREPROCESSING)
    metadata = {
        "num_classes": str(len(names)),
        "mean": str(list(PREPROCESSING.mean)),
        "std": str(list(PREPROCESSING.std)),
        "input_size": str([3, *SIZE]),
    }
    return Task(
        network, lambda seed: network, label, len(names), forget,
        forget.subset(torch.zeros(0, dtype=torch.long)),
        recipe_for("cifar100", "resnet20", 3), seed, ARCH, metadata,
    )  # fmt: skip


def measured(network: torch.nn.Module, test: Split, label: int) -> Measured:
    predictions = image_logits(network, test.pixels, PREPROCESSING).argmax(1).cpu()
    return figures(predictions, test.labels, label)


def figures(predictions: Tensor, labels: Tensor, label: int) -> Measured:
    """A_Df, A_Dr and the accuracies of the retained classes: int64 [n], [n].

    >>> found = figures(torch.tensor([1, 1, 2, 1]), torch.tensor([0, 1, 2, 2]), 0)
    >>> found.a_df, round(found.a_dr, 1), found.by_class
    (0.0, 66.7, {1: 100.0, 2: 50.0})
    """
    forgotten = labels == label
    return Measured(
        accuracy(predictions[forgotten], labels[forgotten]),
        accuracy(predictions[~forgotten], labels[~forgotten]),
        accuracy_per_class(predictions[~forgotten], labels[~forgotten]),
    )


def worst_change(found: Measured, mask: Measured) -> tuple[float, int]:
    """The retained class that loses most against the head mask: its change in points, its label.

    >>> one, other = Measured(0, 50, {1: 40.0, 2: 60.0}), Measured(0, 55, {1: 30.0, 2: 80.0})
    >>> worst_change(one, other)
    (-20.0, 2)
    """
    return min((value - mask.by_class[label], label) for label, value in found.by_class.items())


def results(
    task: Task, method: Method, test: Split
) -> Iterator[tuple[str, Measured, float, float]]:
    """(stage, figures, seconds, peak MB) of each result. Measuring is in none of them."""
    torch.manual_seed(task.seed)
    stages, seconds, peak = method.unlearn(task), 0.0, 0.0
    while True:
        clear_peak()
        start = time.perf_counter()
        result = next(stages, None)
        seconds += time.perf_counter() - start
        if result is None:
            return
        peak = max(peak, peak_mb())
        yield result.stage, measured(result.network, test, task.label), seconds, peak


def clear_peak() -> None:
    """Give free memory back to Linux, so that the peak counts from what is in use."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """The largest resident memory of this process since its peak was last cleared, on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))


def rows_of(task: Task, name: str, mask: Measured, test: Split, names: list[str]) -> Iterator[Row]:
    """A row of the CSV file for each result of a method."""
    for stage, found, seconds, peak in results(task, find(name), test):
        change, worst = worst_change(found, mask)
        values = (
            names[task.label], f"{name} {stage}".strip(), str(task.seed), f"{found.a_df:.2f}",
            f"{found.a_dr:.2f}", f"{change:+.1f}", names[worst], f"{seconds:.1f}", f"{peak:.0f}",
        )  # fmt: skip
        yield dict(zip(COLUMNS, values, strict=True))


def stored(path: Path) -> set[tuple[str, str, str]]:
    """(class, method without its stage, seed) of the rows that are in the file already."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {(r["class"], r["method"].split()[0], r["seed"]) for r in csv.DictReader(file)}


def add(path: Path, rows: list[Row]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--classes", default="bear", help="names separated by commas, or all")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--original", type=Path, default=ORIGINAL)
    parser.add_argument("--out", type=Path, default=Path("rivals_cifar100.csv"))
    given = parser.parse_args()
    names = sorted(folder.name for folder in (given.images / "test").iterdir())
    test = images_of(given.images / "test", names)
    options = InputOptions(ARCH, device="cpu")
    network = load_model(given.original, options, InferenceLog()).network.module.eval()
    done = stored(given.out)
    for name in names if given.classes == "all" else given.classes.split(","):
        for seed in range(given.seeds):
            task = task_for(network, given.images, names, names.index(name), seed)
            (masked,) = find(MASK).unlearn(task)
            mask = measured(masked.network, test, task.label)
            for method in parse_methods(given.methods):
                if (name, method, str(seed)) not in done:
                    rows = list(rows_of(task, method, mask, test, names))
                    add(given.out, rows)
                    print(*(" ".join(row.values()) for row in rows), sep="\n", flush=True)


if __name__ == "__main__":
    main()
