"""Fit the constants of `pbu_cli/evaluation/accuracy_loss.py` to the runs on file.

    python -m tests.measure.accuracy_loss_fit

The runs are in `accuracy_loss_runs.csv`; `accuracy_loss_runs` makes them.
"""

from __future__ import annotations

import csv
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize
from scipy.stats import spearmanr

from pbu_cli.evaluation.accuracy_loss import AccuracyLossModel

RUNS = Path(__file__).with_name("accuracy_loss_runs.csv")
COLUMNS = ("network", "class", "seed", "run", "frame", "drift", "on_anchors", "before", "masked",
           "after", "a_df")  # fmt: skip
LEAST_DRIFT = 0.02  # nats; a run with less drift has no loss that could be told from noise


@dataclass(frozen=True)
class Run:
    """A run on file. on_images, on_anchors: drift in nats, from which the loss is estimated.
    loss: the true loss, in points of A_Dr below the head mask's."""

    network: str
    frame: str
    on_images: float
    on_anchors: float
    loss: float

    def drift(self, both: bool) -> float:
        """The drift that the estimate uses: with `both`, of the images and the anchors."""
        return math.sqrt(self.on_images * self.on_anchors) if both else self.on_images


def read_runs(path: Path = RUNS) -> list[Run]:
    """The runs on file."""
    with path.open() as lines:
        return [
            Run(row["network"], row["frame"], float(row["drift"]), float(row["on_anchors"]),
                float(row["masked"]) - float(row["after"]))
            for row in csv.DictReader(lines, COLUMNS)
        ]  # fmt: skip


def holds(model: AccuracyLossModel, run: Run, both: bool) -> bool:
    """Whether the true loss of a run is inside the interval of its estimate."""
    found = model.accuracy_loss(run.drift(both))
    return found.low <= run.loss <= found.high


def fit(runs: Sequence[Run], both: bool, covered: float = 0.95) -> AccuracyLossModel:
    """The constants with the least absolute deviation of asinh(points).

    asinh, because losses of 0.1 and of 50 points both matter. The margin comes from the runs with
    hardly any drift. The factor is the smallest that covers the share `covered` of the runs.
    """

    def deviation(p: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        tried = AccuracyLossModel(math.exp(p[0]), math.exp(p[1]), 1, 0)
        apart = (math.asinh(tried.loss(r.drift(both))) - math.asinh(r.loss) for r in runs)
        return sum(map(abs, apart))

    scale, power = map(math.exp, minimize(deviation, [2.0, 0.0], method="Nelder-Mead").x)
    still = [abs(r.loss) for r in runs if r.drift(both) < LEAST_DRIFT]
    margin = float(np.quantile(still, covered))
    for step in itertools.count():
        tried = AccuracyLossModel(scale, power, 1.05**step, margin)
        if statistics.fmean(holds(tried, run, both) for run in runs) >= covered:
            return tried
    raise AssertionError("some factor covers any run")


def rank_correlation(runs: Sequence[Run], both: bool) -> float:
    """Spearman's correlation of drift and loss."""
    return float(spearmanr([r.drift(both) for r in runs], [r.loss for r in runs]).statistic)


def by_network(runs: Sequence[Run], both: bool, best: AccuracyLossModel) -> Table:
    """How well the estimate does on each network, also when it is fitted without that network."""
    table = Table("network", "runs", "rank correlation", "covered", "covered, fitted without it")
    for name in sorted({run.network for run in runs}):
        own, others = ([r for r in runs if (r.network == name) is same] for same in (True, False))
        blind = fit(others, both)
        table.add_row(
            name, str(len(own)), f"{rank_correlation(own, both):.3f}",
            *(f"{statistics.fmean(holds(f, r, both) for r in own):.2f}" for f in (best, blind)),
        )  # fmt: skip
    return table


def by_drift(runs: Sequence[Run], both: bool, best: AccuracyLossModel) -> Table:
    """The estimated and the true losses by the size of the drift."""
    table = Table("drift, nats", "runs", "estimated loss", "true loss: least", "median", "most")
    edges = [0, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, math.inf]
    for low, high in itertools.pairwise(edges):
        inside = sorted(run.loss for run in runs if low <= run.drift(both) < high)
        if inside:
            ends = (best.loss(edge) for edge in (low, high))
            shown = (inside[0], statistics.median(inside), inside[-1])
            table.add_row(
                f"{low:g} to {high:g}", str(len(inside)), " to ".join(f"{e:.1f}" for e in ends),
                *(f"{value:.1f}" for value in shown),
            )  # fmt: skip
    return table


def main() -> None:
    console, runs = Console(width=100), read_runs()
    for both, name in ((False, "images alone"), (True, "images and anchors")):
        best = fit(runs, both)
        console.print(f"{name}: {len(runs)} runs, rank {rank_correlation(runs, both):.3f}")
        console.print(best)
        console.print(by_network(runs, both, best))
        console.print(by_drift(runs, both, best))


if __name__ == "__main__":
    main()
