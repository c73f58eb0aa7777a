"""The grid: every method on every class of every seed, from the same originals, resumable.

A cell that is on disk is not computed again. The original of a seed is trained once by the stated
recipe and kept beside the cells, in a folder named by a digest of everything that it depends on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
from torch import nn

from pbu_cli.benchmark import result_store as cells
from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.datasets import Dataset
from pbu_cli.benchmark.methods import find
from pbu_cli.benchmark.methods.task import Method, Task
from pbu_cli.benchmark.originals import described, make_folder, original, settle
from pbu_cli.benchmark.protocol import ORIGINAL, BenchmarkPlan
from pbu_cli.benchmark.result_store import Cell, Outcome
from pbu_cli.errors import PbuError
from pbu_cli.evaluation import metrics
from pbu_cli.evaluation.statistics import auc
from pbu_cli.io.atomic_files import exclusive_output
from pbu_cli.io.safetensors_format import write
from pbu_cli.models.inference import logits
from pbu_cli.unlearning.objective import log_odds


def run(
    plan: BenchmarkPlan, seen: Callable[[int], None] = lambda images: None
) -> Iterator[tuple[Cell, bool]]:
    """Every cell in the order of the grid, and whether it was on disk already.

    `seen` hears of the training images as they are worked through. Raises PbuError where another
    run works on the same folder.
    """
    folder = make_folder(plan.folder())
    with exclusive_output(folder / "grid", force=True):
        for stray in folder.glob(".*.tmp"):  # of a run that was killed
            with suppress(OSError):
                stray.unlink()
        yield from _cells(plan, folder, seen)


def _cells(
    plan: BenchmarkPlan, folder: Path, seen: Callable[[int], None]
) -> Iterator[tuple[Cell, bool]]:
    @cache
    def trained(seed: int) -> tuple[nn.Module, Outcome]:
        return original(plan, seed, seen)

    for seed, label, name in plan.grid():
        method = None if name == ORIGINAL else find(name)
        settings = asdict(plan.recipe) if method is None else method.settings
        found = cells.read(folder, f"seed{seed}-class{label}-{name}", settings)
        if found is not None:
            yield found, True
            continue
        network, training = trained(seed)
        if method is None:
            measured = Outcome(
                "", measures(network, plan.dataset, label), training.seconds, training.images
            )
            cell = Cell(seed, label, name, "both", settings, (measured,))
        else:
            try:
                cell = work(plan, network, method, seed, label, seen)
            except PbuError as error:
                raise type(error)(
                    f"seed {seed}, class {label}, {name}: {error}; the cells before it are kept:"
                    " leave the method out with --methods, or mend this and run again"
                ) from error
        cells.write(folder, cell)
        yield cell, False


def work(
    plan: BenchmarkPlan, network: nn.Module, method: Method, seed: int, label: int,
    seen: Callable[[int], None],
) -> Cell:  # fmt: skip
    """One method on one class: stopwatch while it works, measured while it waits."""
    images = 0

    def count(handed: int) -> None:
        nonlocal images
        images += handed
        seen(handed)

    task = _task(plan, network, method, seed, label, count)
    torch.manual_seed(seed)
    outcomes = []
    results, seconds = method.unlearn(task), 0.0
    while True:
        start = time.perf_counter()
        result = next(results, None)
        settle(plan.device)
        seconds += time.perf_counter() - start
        if result is None:
            break
        found = measures(result.network, plan.dataset, label, result.inside)
        outcomes.append(Outcome(result.stage, found, seconds, images))
        if plan.keep and method.reads != "nothing":  # such a one has no weights of its own
            stage = result.stage.replace(" ", "")
            name = "-".join(filter(None, (f"seed{seed}-class{label}-{method.name}", stage)))
            state = dict(result.network.state_dict())
            write(plan.folder() / f"{name}.safetensors", state, described(plan))
    return Cell(seed, label, method.name, method.reads, method.settings, tuple(outcomes))


def measures(
    network: nn.Module, dataset: Dataset, label: int, inside: nn.Module | None = None
) -> dict[str, float]:
    """What is measured of a network on the test split; measures by name.

    a_df, a_dr: percent. odds_auc: how well the class's log odds tell its images from the others,
    0.5 for not at all; under a mask, of what is `inside`. The one place for more of them: each is
    kept with its cell, averaged over the seeds and shown.
    """
    test, gone = dataset.test, dataset.test.labels == label
    found = logits(network, test.pixels, dataset.preprocessing).cpu()
    answers = found.argmax(1)
    if inside is not None:
        found = logits(inside, test.pixels, dataset.preprocessing).cpu()
    odds = log_odds(found, torch.arange(found.shape[1]) == label)
    return {
        "a_df": metrics.accuracy(answers[gone], test.labels[gone]),
        "a_dr": metrics.accuracy(answers[~gone], test.labels[~gone]),
        "odds_auc": float(auc(odds[gone], odds[~gone])),
    }


def _task(
    plan: BenchmarkPlan, network: nn.Module, method: Method, seed: int, label: int,
    count: Callable[[int], None],
) -> Task:  # fmt: skip
    """A method is handed the images that it says it reads, and no others."""
    split = plan.dataset.train
    everything = CountingLoader(
        split.pixels, split.labels, plan.dataset.preprocessing, plan.device, count
    )
    gone = split.labels == label
    nothing = torch.zeros_like(gone)
    return Task(
        network,
        plan.candidate.fresh,
        label,
        len(plan.dataset.classes),
        everything.chosen(gone if method.reads in ("forget", "both") else nothing),
        everything.chosen(~gone if method.reads in ("retained", "both") else nothing),
        plan.recipe,
        seed,
        plan.candidate.arch,
        described(plan),
    )
