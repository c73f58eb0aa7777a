"""The paper's own figures, to stand beside ours.

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

# Their convnext is the large one; our authors' recipe and our method both stand beside their PBU.
MODELS = {"convnextlarge": "convnextl"}
METHODS = {"pbu-paper": "pbu"}


class Figures(NamedTuple):
    """Percent; mean and standard deviation."""

    a_df: tuple[float, float]
    a_dr: tuple[float, float]


def figures(dataset: str, model: str, label: int, method: str) -> Figures | None:
    """What the paper reports of a cell; None where it reports nothing.

    >>> figures("mnist", "resnet34", 8, "pbu")
    Figures(a_df=(0.0, 0.0), a_dr=(98.24, 0.36))
    >>> figures("cifar10", "resnet20", 8, "pbu") is None
    True
    """
    model = _plain(model)
    key = (_plain(dataset), MODELS.get(model, model), label, METHODS.get(method, method))
    return _table().get(key)


@cache
def _table() -> dict[tuple[str, str, int, str], Figures]:
    text = resources.files("pbu_cli.benchmark").joinpath("paper_table.csv").read_text("utf-8")
    return {
        (_plain(row["dataset"]), _plain(row["model"]), int(row["class"]), row["method"]): Figures(
            (float(row["A_Df_mean"]), float(row["A_Df_std"])),
            (float(row["A_Dr_mean"]), float(row["A_Dr_std"])),
        )
        for row in csv.DictReader(text.splitlines())
    }


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
