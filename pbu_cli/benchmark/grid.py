"""The grid: every method on every class of every seed, from the same originals, resumable.

A cell that is on disk is not computed again. The original of a seed is trained once by the stated
recipe and kept beside the cells, in a folder named by a digest of everything that it depends on.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import nn

from pbu_cli import checkpoint, metrics
from pbu_cli.baselines import find
from pbu_cli.baselines.task import Extent, Method, Task
from pbu_cli.benchmark import cells
from pbu_cli.benchmark.cells import Cell, Outcome
from pbu_cli.errors import PbuError, printable
from pbu_cli.files import claimed
from pbu_cli.logits import logits
from pbu_cli.model import load
from pbu_cli.objective import log_odds
from pbu_cli.roc import auc
from pbu_cli.training.candidate import Candidate
from pbu_cli.training.datasets import Dataset
from pbu_cli.training.feed import Feed
from pbu_cli.training.recipe import Recipe, train

ORIGINAL = "original"  # the row that the others start from


@dataclass(frozen=True)
class Plan:
    """What is to be measured, and where it goes. labels: the classes to forget, one at a time."""

    dataset: Dataset
    candidate: Candidate
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


def run(
    plan: Plan, seen: Callable[[int], None] = lambda images: None
) -> Iterator[tuple[Cell, bool]]:
    """Every cell in the order of the grid, and whether it was on disk already.

    `seen` hears of the training images as they are worked through. Raises PbuError where another
    run works on the same folder.
    """
    folder = _made(plan.folder())
    with claimed(folder / "grid", force=True):
        for stray in folder.glob(".*.tmp"):  # of a run that was killed
            with suppress(OSError):
                stray.unlink()
        yield from _cells(plan, folder, seen)


def _cells(plan: Plan, folder: Path, seen: Callable[[int], None]) -> Iterator[tuple[Cell, bool]]:
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
    plan: Plan, network: nn.Module, method: Method, seed: int, label: int,
    seen: Callable[[int], None],
) -> Cell:  # fmt: skip
    """One method on one class: timed while it works, measured while it waits."""
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
        _settle(plan.device)
        seconds += time.perf_counter() - start
        if result is None:
            break
        found = measures(result.network, plan.dataset, label, result.inside)
        outcomes.append(Outcome(result.stage, found, seconds, images))
        if plan.keep and method.reads != "nothing":  # such a one has no weights of its own
            stage = result.stage.replace(" ", "")
            name = "-".join(filter(None, (f"seed{seed}-class{label}-{method.name}", stage)))
            state = dict(result.network.state_dict())
            checkpoint.write(plan.folder() / f"{name}.safetensors", state, described(plan))
    return Cell(seed, label, method.name, method.reads, method.settings, tuple(outcomes))


def original(plan: Plan, seed: int, seen: Callable[[int], None]) -> tuple[nn.Module, Outcome]:
    """The network of a seed from disk, else trained and written; what its training cost."""
    path = _made(plan.folder()) / f"original-seed{seed}.safetensors"
    network = plan.candidate.fresh(seed).to(plan.device)
    if path.exists():
        kept = checkpoint.read(path)
        load(network, kept.stored_names(kept.tensors))
        cost = (float(kept.metadata["seconds"]), int(kept.metadata["images"]))
        return network.eval(), Outcome("", {}, *cost)
    images = 0

    def count(handed: int) -> None:
        nonlocal images
        images += handed
        seen(handed)

    split = plan.dataset.train
    feed = Feed(split.pixels, split.labels, plan.dataset.preprocessing, plan.device, count)
    start = time.perf_counter()
    torch.manual_seed(seed)
    train(network, feed, plan.recipe, seed=seed)
    _settle(plan.device)
    seconds = time.perf_counter() - start
    facts = {**described(plan), "seconds": f"{seconds:.2f}", "images": str(images)}
    checkpoint.write(path, dict(network.state_dict()), facts)
    return network, Outcome("", {}, round(seconds, 2), images)


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


def described(plan: Plan) -> dict[str, str]:
    """The metadata of a checkpoint, as `pbu unlearn` understands them."""
    known = plan.dataset.preprocessing
    facts = {
        "format": "pt",
        "num_classes": str(len(plan.dataset.classes)),
        "mean": str(list(known.mean)),
        "std": str(list(known.std)),
        "input_size": str([known.channels, *known.size]),
    }
    return facts | ({"architecture": plan.candidate.builder} if plan.candidate.builder else {})


def _settle(device: torch.device) -> None:
    """Wait for a GPU, which works on while Python does: its time belongs to what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_place(folder: Path) -> None:
    """Raise PbuError where results could not be written, before any work is done."""
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise PbuError(
            f"{printable(there)}: not a folder that can be written to; choose another --out"
        )


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PbuError(
            f"{printable(folder)}: cannot be made: {error.strerror}; choose another --out"
        ) from None
    return folder


def _task(
    plan: Plan, network: nn.Module, method: Method, seed: int, label: int,
    count: Callable[[int], None],
) -> Task:  # fmt: skip
    """A method is handed the images that it says it reads, and no others."""
    split = plan.dataset.train
    everything = Feed(split.pixels, split.labels, plan.dataset.preprocessing, plan.device, count)
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
