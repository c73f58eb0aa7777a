"""Turn the cells of a benchmark into the rows of a table like the paper's."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pbu_cli.benchmark.plot import Point
from pbu_cli.benchmark.published_results import PublishedResult, find_published
from pbu_cli.benchmark.result_store import Cell, Outcome
from pbu_cli.evaluation.measures import MEASURES

ACCURACIES = ("a_df", "a_dr")  # the measures that every cell has
CAPTIONS = (  # one line each
    "A_Df, A_Dr: accuracy on the forget class and on the others, in percent of the test split.",
    "odds AUC: how well the class's log odds separate its images from others; chance is 0.5.",
    "odds AUC of head-mask: measured without the mask.",
    "±: standard deviation over the seeds. paper: as published; pbu-paper has the figures of pbu.",
    "reads: which training images the method is given. images: how many it read, repeats counted.",
    "seconds: of the method alone, without measuring.",
)


# The fields of Row are keys of `--json`, so their names must stay.
@dataclass(frozen=True)
class Row:
    """The mean over the seeds of one class, method and stage, and what the paper reports for it.

    mean, std: by measure; std is None where there is one seed. seconds, images: means.
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
    paper: PublishedResult | None

    @property
    def name(self) -> str:
        return f"{self.method} {self.stage}".strip()


def summarise(cells: Sequence[Cell], dataset: str, model: str) -> list[Row]:
    """One row for each class, method and stage, in the order of the cells."""
    groups: dict[tuple[int, str, str], list[tuple[Cell, Outcome]]] = {}
    for cell in cells:
        for outcome in cell.outcomes:
            groups.setdefault((cell.label, cell.method, outcome.stage), []).append((cell, outcome))
    rows = []
    for (label, method, stage), members in groups.items():
        outcomes = [outcome for _, outcome in members]
        values = {name: [o.measures[name] for o in outcomes] for name in outcomes[0].measures}
        several = len(outcomes) > 1
        rows.append(
            Row(
                label,
                method,
                stage,
                members[0][0].reads,
                len(outcomes),
                {name: statistics.mean(v) for name, v in values.items()},
                {name: statistics.stdev(v) for name, v in values.items()} if several else None,
                statistics.mean(o.seconds for o in outcomes),
                statistics.mean(o.images for o in outcomes),
                find_published(dataset, model, label, method),
            )
        )
    return rows


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The titles of the columns, and the texts of the rows.

    The accuracies come first, then the other measures in the order in which they were stored.
    """
    others = [name for name in rows[0].mean if name not in ACCURACIES]
    titles = [MEASURES[name].title if name in MEASURES else name for name in others]
    columns = ["", "reads", "A_Df", "A_Dr", *titles, "seconds", "images"]
    columns += ["paper A_Df", "paper A_Dr"]
    texts = []
    for row in rows:
        values = [
            mean_and_std(row.mean[name], row.std[name] if row.std else None, _places(name))
            for name in (*ACCURACIES, *others)
        ]
        paper = ["", ""] if row.paper is None else [mean_and_std(*pair) for pair in row.paper]
        cost = [f"{row.seconds:.1f}", f"{row.images:,.0f}"]
        texts.append([row.name, row.reads, *values, *cost, *paper])
    return columns, texts


def mean_and_std(mean: float, std: float | None, places: int = 2) -> str:
    """A mean and, where it is known, its standard deviation.

    >>> mean_and_std(98.7312, 0.5701), mean_and_std(0.0, None), mean_and_std(0.98765, None, 3)
    ('98.73 ± 0.57', '0.00', '0.988')
    """
    return f"{mean:.{places}f}" if std is None else f"{mean:.{places}f} ± {std:.{places}f}"


def _places(name: str) -> int:
    """How many digits of a measure are shown after the point."""
    return MEASURES[name].places if name in MEASURES else 2


def plot_points(rows: Sequence[Row]) -> list[Point]:
    """One point for each method and stage: the mean over its classes."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.name, []).append(row)
    return [
        Point(
            name,
            statistics.mean(row.mean["a_df"] for row in members),
            statistics.mean(row.mean["a_dr"] for row in members),
            statistics.mean(row.seconds for row in members),
        )
        for name, members in groups.items()
    ]


def document(row: Row) -> dict[str, Any]:
    """A row for `--json`."""
    return {**asdict(row), "paper": None if row.paper is None else row.paper._asdict()}
