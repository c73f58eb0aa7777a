"""The runs by which `damage.py` is calibrated: many settings, good and bad, on several networks.

    python -m tests.measure.gauge run mnist 8 --runs 14 --seed 58 >> tests/gauge.csv
    python -m tests.measure.gauge fit

A line a run: the drift of the answers on the forget images and on anchors, which is all that the
estimate has, and the accuracies on the retained test images, which is what it is to tell. Weights,
aim, rate and number of steps are drawn anew for each run, far into what breaks a network; nothing
stops a run that does. Every fifth one is as `--fast`. Checkpoints and images come from ../shared.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize
from scipy.stats import spearmanr
from torch import Tensor

from pbu_cli.data.decoding import decode
from pbu_cli.data.image_folders import list_groups, split_by_subfolder
from pbu_cli.data.preprocessing import normalise
from pbu_cli.errors import PbuError
from pbu_cli.evaluation.accuracy_loss import AccuracyLossModel
from pbu_cli.inputs.loaded_model import load_model
from pbu_cli.inputs.prepare import UnlearningInputs, assemble
from pbu_cli.models.frozen_backbone import extract, from_features
from pbu_cli.models.parameter_groups import head_module
from pbu_cli.pipeline.fisher import measure_fisher
from pbu_cli.pipeline.forget_set import forget_set
from pbu_cli.settings import DEEP, FAST, InputOptions, Preset
from pbu_cli.unlearning.anchor_loss import AnchorLoss
from pbu_cli.unlearning.loop import unlearn
from pbu_cli.unlearning.model_inversion import synthesise_anchors
from pbu_cli.unlearning.objective import restricted_log_softmax, stability
from tests.measure.archives import unpack
from tests.measure.results import ARCH, SHARED

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
# name -> data, checkpoint, --arch, mean and deviation
NETWORKS = {
    "mnist": ("mnist", "mnist_resnet34_fp16", None, ((0.1307,), (0.3081,))),
    "r20": ("cifar10", "cifar10_resnet20", f"{ARCH}:resnet20", IMAGENET),
    "r32": ("cifar10", "cifar10_resnet32", f"{ARCH}:resnet32", IMAGENET),
    "orig": ("cifar10", "cifar10_resnet20_original", f"{ARCH}:resnet20", CIFAR),
}
ESTIMATORS = ("network", "class", "seed", "run", "frame", "drift", "on_anchors", "before", "masked",
           "after", "a_df")  # fmt: skip
TABLE = Path(__file__).with_name("gauge.csv")
STILL = 0.02  # nats: less drift than this shows no loss
FRAMES = ("deep", "fast", "paper", "deep", "fast")


def drawn(run: int, draw: random.Random) -> tuple[str, Preset]:
    """The frame and settings of a run; of every fifth those of --fast as they are."""

    def times(low: float, high: float) -> float:
        return float(10 ** draw.uniform(low, high))

    frame = FRAMES[run % 5]
    start = DEEP if frame == "deep" else FAST
    w, s = start.weights, start.schedule
    weights = replace(
        w, alpha=w.alpha * times(-1, 2), beta=w.beta * times(-2, 1), gamma=w.gamma * times(-2, 1)
    )
    schedule = replace(
        s, seed=run, most_drift=1e9, tau=times(-12, -2), steps=int(times(1.3, 2.2)),
        steps_to_goal=s.steps_to_goal * times(-1.2, 0.3),
    )  # fmt: skip
    if frame == "deep":
        weights = replace(
            weights, delta=2 * times(-2, 1), epsilon=40 * times(-3, 0.3), zeta=2 * times(-1, 1)
        )
    elif frame == "fast":
        weights = replace(weights, delta=100 * times(-4, 0.3))
    else:
        weights = replace(weights, delta=0.0)
    if run % 5 == 4:
        weights, schedule = w, replace(s, seed=run)
    return frame, replace(start, weights=weights, schedule=schedule)


class Bench:
    """A network with its forget images, anchors, and what its trunk makes of the test images."""

    def __init__(self, network: str, label: int, data: Path) -> None:
        archive, checkpoint, arch, (mean, std) = NETWORKS[network]
        root = data / archive
        classes = sorted(path.name for path in (root / "test").iterdir())
        wanted = InputOptions(arch=arch, mean=mean, std=std, labels=(str(label),))
        loaded = load_model(SHARED / "checkpoints" / f"{checkpoint}.safetensors", wanted, _quiet)
        folder = str(root / "train" / classes[label])
        self.prepared: UnlearningInputs = assemble(loaded, [folder], wanted, _quiet, layers="last")
        self.model = self.prepared.loaded.network.module
        self.forget, _ = forget_set(self.prepared, replace(DEEP.schedule, mirror=0.0))
        groups = split_by_subfolder(list_groups([str(root / "test")])[0])
        size, channels = self.prepared.preprocessing.size, self.prepared.preprocessing.channels
        pixels = decode(groups, channels=channels, size=size).pixels
        labels = torch.cat([torch.full((len(g.paths),), n) for n, g in enumerate(groups)])
        rounds = (normalise(part, self.prepared.preprocessing) for part in pixels.split(256))
        features, answers = extract(self.model, self.prepared.split_point, rounds)
        assert features is not None
        self.test = features
        self.answers, self.labels, self.kept = answers, labels, labels != label
        self.head = head_module(self.model, self.prepared.loaded.network.builder)
        assert self.head is not None
        with from_features(self.model, self.prepared.split_point):
            chosen = torch.linspace(0, len(self.forget) - 1, DEEP.anchors).long()
            self.anchors = synthesise_anchors(
                self.model, self.head, self.forget.inputs(chosen), self.prepared.staying,
                count=DEEP.anchors, schedule=DEEP.schedule,
            )  # fmt: skip
        self.fisher = measure_fisher(self.prepared, "empirical")
        self.theta = {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def accuracy(self, answers: Tensor, *, masked: bool = False) -> float:
        """A_Dr in percent, with `masked` as if the class could not be answered."""
        if masked:
            answers = answers.masked_fill(self.prepared.forgotten, -torch.inf)
        right = answers.argmax(dim=1)[self.kept] == self.labels[self.kept]
        return 100 * right.float().mean().item()

    def run(self, frame: str, preset: Preset) -> tuple[float, float, float, float] | None:
        """Drift on forget images and on anchors, A_Dr and A_Df after a run from theta*; None where
        its loss became no number."""
        prepared, (weights, schedule) = self.prepared, (preset.weights, preset.schedule)
        deep = frame == "deep"
        trained = [n for n in prepared.trained if not deep or n not in set(prepared.head)]
        assert self.head is not None
        try:
            with from_features(self.model, prepared.split_point):
                anchor_loss = (
                    AnchorLoss(
                        self.model, self.head, self.anchors, prepared.forgotten, weights, schedule
                    )
                    if deep
                    else None
                )
                for _ in unlearn(
                    self.model, self.forget, self.fisher, trained=trained, head=prepared.head,
                    weights=weights, schedule=schedule, anchor_loss=anchor_loss,
                ):  # fmt: skip
                    pass
                everything = self.forget.inputs(torch.arange(len(self.forget)))
                ours, made, theirs = (
                    extract(self.model, None, inputs.split(256))[1]
                    for inputs in (everything, self.anchors.inputs, self.test)
                )
        except PbuError:
            return None
        finally:
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    parameter.copy_(self.theta[name])
        before = (self.forget.answers, self.anchors.answers)
        references = (restricted_log_softmax(answers, prepared.forgotten) for answers in before)
        drift, on_anchors = (
            stability(answers, reference, prepared.forgotten).item()
            for answers, reference in zip((ours, made), references, strict=True)
        )
        left = (theirs.argmax(dim=1)[~self.kept] == self.labels[~self.kept]).float().mean().item()
        return drift, on_anchors, self.accuracy(theirs), 100 * left


def _quiet(what: str, value: str, source: str) -> None:
    """What is inferred is known here."""


@dataclass(frozen=True)
class Run:
    """A line of the table: what the estimate is made from, and the truth in points of A_Dr."""

    network: str
    frame: str
    on_images: float
    on_anchors: float
    loss: float

    def drift(self, both: bool) -> float:
        return math.sqrt(self.on_images * self.on_anchors) if both else self.on_images


def runs(path: Path = TABLE) -> list[Run]:
    """The runs on file. The loss is that against the head mask."""
    with path.open() as lines:
        return [
            Run(row["network"], row["frame"], float(row["drift"]), float(row["on_anchors"]),
                float(row["masked"]) - float(row["after"]))
            for row in csv.DictReader(lines, ESTIMATORS)
        ]  # fmt: skip


def holds(gauge: AccuracyLossModel, run: Run, both: bool) -> bool:
    damage = gauge.damage(run.drift(both))
    return damage.low <= run.loss <= damage.high


def fit(found: Sequence[Run], both: bool, covered: float = 0.95) -> AccuracyLossModel:
    """Least absolute deviation, of asinh of the points, since losses of 0.1 and of 50 both matter;
    the margin from the runs that hardly moved anything, the least factor that covers so many."""

    def deviation(p: np.ndarray) -> float:
        tried = AccuracyLossModel(math.exp(p[0]), math.exp(p[1]), 1, 0)
        apart = (math.asinh(tried.loss(r.drift(both))) - math.asinh(r.loss) for r in found)
        return sum(map(abs, apart))

    scale, power = map(math.exp, minimize(deviation, [2.0, 0.0], method="Nelder-Mead").x)
    margin = float(np.quantile([abs(r.loss) for r in found if r.drift(both) < STILL], covered))
    for step in itertools.count():
        tried = AccuracyLossModel(scale, power, 1.05**step, margin)
        if statistics.fmean(holds(tried, run, both) for run in found) >= covered:
            return tried
    raise AssertionError("some factor covers any run")


def rank_correlation(found: Sequence[Run], both: bool) -> float:
    return float(spearmanr([r.drift(both) for r in found], [r.loss for r in found]).statistic)


def report(found: Sequence[Run], both: bool) -> None:
    """The constants of `damage.py`, and how far they are to be trusted."""
    console, best = Console(width=100), fit(found, both)
    named = "images and anchors" if both else "images alone"
    console.print(
        f"{named}: {len(found)} runs, rank correlation {rank_correlation(found, both):.3f}"
    )
    console.print(best)
    table = Table("network", "runs", "rank correlation", "covered", "covered, fitted without it")
    for name in sorted({run.network for run in found}):
        own, others = ([r for r in found if (r.network == name) is same] for same in (True, False))
        blind = fit(others, both)
        table.add_row(
            name, str(len(own)), f"{rank_correlation(own, both):.3f}",
            *(f"{statistics.fmean(holds(f, r, both) for r in own):.2f}" for f in (best, blind)),
        )  # fmt: skip
    console.print(table)
    table = Table("drift, nats", "runs", "estimated loss", "true loss: least", "median", "most")
    edges = [0, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, math.inf]
    for low, high in itertools.pairwise(edges):
        inside = sorted(run.loss for run in found if low <= run.drift(both) < high)
        if inside:
            ends = (best.loss(edge) for edge in (low, high))
            shown = (inside[0], statistics.median(inside), inside[-1])
            table.add_row(
                f"{low:g} to {high:g}", str(len(inside)), " to ".join(f"{e:.1f}" for e in ends),
                *(f"{value:.1f}" for value in shown),
            )  # fmt: skip
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    jobs = parser.add_subparsers(dest="job", required=True)
    jobs.add_parser("fit")
    work = jobs.add_parser("run")
    work.add_argument("network", choices=NETWORKS)
    work.add_argument("label", type=int)
    work.add_argument("--runs", type=int, default=14)
    work.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.job == "fit":
        for both in (False, True):
            report(runs(), both)
        return
    draw, out = random.Random(given.seed), csv.writer(sys.stdout)
    with tempfile.TemporaryDirectory() as scratch:
        archive = NETWORKS[given.network][0]
        unpack(SHARED / "data" / f"{archive}.tar.xz", Path(scratch) / archive)
        bench = Bench(given.network, given.label, Path(scratch))
    before, masked = bench.accuracy(bench.answers), bench.accuracy(bench.answers, masked=True)
    for number in range(given.runs):
        frame, preset = drawn(number, draw)
        found = bench.run(frame, preset)
        if found is None:
            continue
        *drifts, after, a_df = found
        named = (given.network, given.label, given.seed, number, frame)
        measured = (f"{value:.3f}" for value in (before, masked, after, a_df))
        out.writerow([*named, *(f"{drift:.6f}" for drift in drifts), *measured])
        sys.stdout.flush()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
