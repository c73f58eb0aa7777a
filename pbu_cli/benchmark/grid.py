"""Run the grid: every method on every class of every seed, from the same originals.

An interrupted run can be resumed: a cell that is on disk is not computed again. The original of a
seed is trained once and kept beside the cells, in a folder whose name digests everything that the
results depend on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from pbu_cli.benchmark import result_store
from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.datasets import Dataset
from pbu_cli.benchmark.methods import find
from pbu_cli.benchmark.methods.task import Method, Result, Task
from pbu_cli.benchmark.originals import (
    Original,
    checkpoint_metadata,
    load_or_train,
    make_folder,
    stored_digest,
    wait_for,
)
from pbu_cli.benchmark.protocol import ORIGINAL, BenchmarkPlan
from pbu_cli.benchmark.result_store import Cell, Outcome, cell_name
from pbu_cli.data.preprocessing import image_logits
from pbu_cli.errors import PbuError
from pbu_cli.evaluation import metrics
from pbu_cli.evaluation.statistics import auc
from pbu_cli.io.atomic_files import exclusive_output
from pbu_cli.io.safetensors_format import write
from pbu_cli.unlearning.objective import log_odds

CountImages = Callable[[int], None]


def run_grid(
    plan: BenchmarkPlan, count_images: CountImages = lambda images: None
) -> Iterator[tuple[Cell, bool]]:
    """Yield every cell in the order of the grid, and whether it was on disk already.

    count_images: called with the number of images in each batch that training and the methods
    read. Raises PbuError where another run works on the same folder, and where a method fails;
    the cells that were yielded before stay on disk.
    """
    folder = make_folder(plan.folder())
    with exclusive_output(folder / "grid", force=True):
        for partial in folder.glob(".*.tmp"):  # left by a run that was killed
            with suppress(OSError):
                partial.unlink()
        yield from _cells(plan, folder, count_images)


def _cells(
    plan: BenchmarkPlan, folder: Path, count_images: CountImages
) -> Iterator[tuple[Cell, bool]]:
    @cache
    def original(seed: int) -> Original:
        return load_or_train(plan, seed, count_images)

    @cache
    def digest_before(seed: int) -> str | None:
        return stored_digest(plan, seed)

    for seed, label, name in plan.grid():
        method = None if name == ORIGINAL else find(name)
        settings = asdict(plan.recipe) if method is None else method.settings
        place = cell_name(seed, label, name)
        stored = result_store.read(folder, place, settings, digest_before(seed))
        if stored is not None:
            yield stored, True
            continue
        network, training, digest = original(seed)
        if method is None:
            found = measure_network(network, plan.dataset, label)
            outcome = Outcome("", found, training.seconds, training.images)
            cell = Cell(seed, label, name, "both", settings, (outcome,), digest)
        else:
            try:
                cell = run_method(plan, network, method, seed, label, count_images)
                cell = replace(cell, original=digest)
            except PbuError as error:
                raise type(error)(
                    f"seed {seed}, class {label}, {name}: {error}; the cells before this one are"
                    " kept: leave the method out with --methods, or correct the cause and run again"
                ) from error
        result_store.write(folder, cell)
        yield cell, False


def run_method(
    plan: BenchmarkPlan, original: nn.Module, method: Method, seed: int, label: int,
    count_images: CountImages,
) -> Cell:  # fmt: skip
    """One method on one class.

    The stopwatch runs only while the method computes its next result. While the method waits, its
    result is measured and, if the plan asks for it, written.
    """
    images = 0

    def count(handed_out: int) -> None:
        nonlocal images
        images += handed_out
        count_images(handed_out)

    task = make_task(plan, original, method, seed, label, count)
    torch.manual_seed(seed)
    outcomes = []
    results, seconds = method.unlearn(task), 0.0
    while True:
        start = time.perf_counter()
        result = next(results, None)
        wait_for(plan.device)
        seconds += time.perf_counter() - start
        if result is None:
            break
        found = measure_network(result.network, plan.dataset, label, result.unmasked)
        outcomes.append(Outcome(result.stage, found, seconds, images))
        # A method that reads nothing only masks the original and has no weights of its own.
        if plan.keep_networks and method.reads != "nothing":
            _write_network(plan, cell_name(seed, label, method.name), result)
    return Cell(seed, label, method.name, method.reads, method.settings, tuple(outcomes), "")


def _write_network(plan: BenchmarkPlan, name: str, result: Result) -> None:
    name = "-".join(filter(None, (name, result.stage.replace(" ", ""))))
    tensors = dict(result.network.state_dict())
    write(plan.folder() / f"{name}.safetensors", tensors, checkpoint_metadata(plan))


def measure_network(
    network: nn.Module, dataset: Dataset, label: int, unmasked: nn.Module | None = None
) -> dict[str, float]:
    """The measures of a network on the test split, by name.

    a_df, a_dr: accuracy on the forget class and on the others, in percent. odds_auc: the AUC with
    which the class's log odds separate its images from the others; 0.5 is chance. Where the
    network is masked, the log odds are those of `unmasked`.

    To add a measure, add a key here: every key is stored with its cell, averaged over the seeds
    and shown in the table.
    """
    test, is_forget = dataset.test, dataset.test.labels == label
    z = image_logits(network, test.pixels, dataset.preprocessing).cpu()
    predictions = z.argmax(1)
    if unmasked is not None:
        z = image_logits(unmasked, test.pixels, dataset.preprocessing).cpu()
    odds = log_odds(z, torch.arange(z.shape[1]) == label)
    return {
        "a_df": metrics.accuracy(predictions[is_forget], test.labels[is_forget]),
        "a_dr": metrics.accuracy(predictions[~is_forget], test.labels[~is_forget]),
        "odds_auc": float(auc(odds[is_forget], odds[~is_forget])),
    }


def make_task(
    plan: BenchmarkPlan, original: nn.Module, method: Method, seed: int, label: int,
    count_images: CountImages,
) -> Task:  # fmt: skip
    """The task for a method, with the training images that it says it reads and no others."""
    split = plan.dataset.train
    loader = CountingLoader(
        split.pixels, split.labels, plan.dataset.preprocessing, plan.device, count_images
    )
    is_forget = split.labels == label
    none = torch.zeros_like(is_forget)
    return Task(
        original,
        plan.network.build_untrained,
        label,
        len(plan.dataset.classes),
        loader.subset(is_forget if method.reads in ("forget", "both") else none),
        loader.subset(~is_forget if method.reads in ("retained", "both") else none),
        plan.recipe,
        seed,
        plan.network.arch,
        checkpoint_metadata(plan),
    )
