"""Cells of a benchmark -> the rows of its table, laid out like the paper's."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pbu_cli.benchmark.plot import Mark
from pbu_cli.benchmark.published_results import Figures, figures
from pbu_cli.benchmark.result_store import Cell, Outcome
from pbu_cli.evaluation.measures import MEASURES

ALWAYS = ("a_df", "a_dr")


@dataclass(frozen=True)
class Row:
    """The seeds of a class, method and stage taken together, beside what the paper reports.

    mean, std: by measure; of one seed there is no std. seconds, images: means.
    """

    label: int
    method: str
    stage: str
    reads: str
    seeds: int
    mean: dict[str, float]
    std: dict[str, float] | None
    seconds: float
    images: float
    paper: Figures | None

    @property
    def name(self) -> str:
        return f"{self.method} {self.stage}".strip()


def summarise(measured: Sequence[Cell], dataset: str, model: str) -> list[Row]:
    """One row for each class, method and stage, in the order of the cells."""
    groups: dict[tuple[int, str, str], list[tuple[Cell, Outcome]]] = {}
    for cell in measured:
        for outcome in cell.outcomes:
            groups.setdefault((cell.label, cell.method, outcome.stage), []).append((cell, outcome))
    rows = []
    for (label, method, stage), found in groups.items():
        outcomes = [outcome for _, outcome in found]
        values = {name: [o.measures[name] for o in outcomes] for name in outcomes[0].measures}
        several = len(found) > 1
        rows.append(
            Row(
                label,
                method,
                stage,
                found[0][0].reads,
                len(found),
                {name: statistics.mean(v) for name, v in values.items()},
                {name: statistics.stdev(v) for name, v in values.items()} if several else None,
                statistics.mean(o.seconds for o in outcomes),
                statistics.mean(o.images for o in outcomes),
                figures(dataset, model, label, method),
            )
        )
    return rows


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells. Measures beyond the two that are always there stand behind them."""
    more = [name for name in rows[0].mean if name not in ALWAYS]
    titles = [MEASURES[name].title if name in MEASURES else name for name in more]
    columns = ["", "reads", "A_Df", "A_Dr", *titles, "seconds", "images"]
    columns += ["paper A_Df", "paper A_Dr"]
    shown = []
    for row in rows:
        values = [
            spread(row.mean[name], row.std[name] if row.std else None, _places(name))
            for name in (*ALWAYS, *more)
        ]
        paper = ["", ""] if row.paper is None else [spread(*pair) for pair in row.paper]
        work = [f"{row.seconds:.1f}", f"{row.images:,.0f}"]
        shown.append([row.name, row.reads, *values, *work, *paper])
    return columns, shown


def spread(mean: float, std: float | None, places: int = 2) -> str:
    """
    >>> spread(98.7312, 0.5701), spread(0.0, None), spread(0.98765, None, 3)
    ('98.73 ± 0.57', '0.00', '0.988')
    """
    return f"{mean:.{places}f}" if std is None else f"{mean:.{places}f} ± {std:.{places}f}"


def _places(name: str) -> int:
    return MEASURES[name].places if name in MEASURES else 2


def marks(rows: Sequence[Row]) -> list[Mark]:
    """One mark a method and stage, its classes averaged."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.name, []).append(row)
    return [
        Mark(
            name,
            statistics.mean(row.mean["a_df"] for row in some),
            statistics.mean(row.mean["a_dr"] for row in some),
            statistics.mean(row.seconds for row in some),
        )
        for name, some in groups.items()
    ]


def document(row: Row) -> dict[str, Any]:
    """A row for `--json`."""
    return {**asdict(row), "paper": None if row.paper is None else row.paper._asdict()}
