"""The figures that the paper reports, to be shown beside ours.

Source of `paper_table.csv`: the results tables of Panda, Sourav, Prathosh, "Partially Blinded
Unlearning: Class Unlearning for Deep Networks from Bayesian Perspective", AAAI 2025, arXiv
2403.16246, as published: percent on the test split, mean and standard deviation.
"""

from __future__ import annotations

import csv
import re
from functools import cache
from importlib import resources
from typing import NamedTuple

# The paper's ConvNeXt is the large one. Its row PBU is shown beside the authors' recipe and beside
# our method.
MODELS = {"convnextlarge": "convnextl"}
METHODS = {"pbu-paper": "pbu"}


class PublishedResult(NamedTuple):
    """(mean, standard deviation) of both accuracies, percent. The names are keys of `--json`."""

    a_df: tuple[float, float]
    a_dr: tuple[float, float]


def find_published(dataset: str, model: str, label: int, method: str) -> PublishedResult | None:
    """What the paper reports for a data set, model, class and method; None if it reports nothing.

    >>> find_published("mnist", "resnet34", 8, "pbu")
    PublishedResult(a_df=(0.0, 0.0), a_dr=(98.24, 0.36))
    >>> find_published("cifar10", "resnet20", 8, "pbu") is None
    True
    """
    model = _normalised(model)
    key = (_normalised(dataset), MODELS.get(model, model), label, METHODS.get(method, method))
    return _table().get(key)


@cache
def _table() -> dict[tuple[str, str, int, str], PublishedResult]:
    text = resources.files("pbu_cli.benchmark").joinpath("paper_table.csv").read_text("utf-8")
    table = {}
    for row in csv.DictReader(text.splitlines()):
        key = (
            _normalised(row["dataset"]), _normalised(row["model"]), int(row["class"]),
            row["method"],
        )  # fmt: skip
        table[key] = PublishedResult(
            (float(row["A_Df_mean"]), float(row["A_Df_std"])),
            (float(row["A_Dr_mean"]), float(row["A_Dr_std"])),
        )
    return table


def _normalised(name: str) -> str:
    """A name without case and punctuation, so that ResNet-34 and resnet34 are the same."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
