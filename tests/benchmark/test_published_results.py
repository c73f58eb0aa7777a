"""The paper's figures, found under the names that the benchmark uses."""

from __future__ import annotations

import csv

import pytest

from pbu_cli.benchmark.methods import NAMES
from pbu_cli.benchmark.protocol import ORIGINAL
from pbu_cli.benchmark.published_results import Figures, figures
from tests.conftest import SHARED

DATASETS = {"MNIST": "mnist", "CIFAR-100": "cifar100", "FOOD-101": "food101"}
MODELS = {
    "ResNet-34": "resnet34", "ResNet-50": "resnet50", "DenseNet-121": "densenet121",
    "ConvNeXt-L": "convnext_large",
}  # fmt: skip


def test_every_published_figure_is_found(shared):
    rows = list(csv.DictReader((SHARED / "paper_table.csv").open()))
    assert len(rows) == 27 * 6
    for row in rows:
        found = figures(
            DATASETS[row["dataset"]], MODELS[row["model"]], int(row["class"]), row["method"]
        )
        assert found == Figures(
            (float(row["A_Df_mean"]), float(row["A_Df_std"])),
            (float(row["A_Dr_mean"]), float(row["A_Dr_std"])),
        )
        assert row["method"] in (*NAMES, ORIGINAL)


@pytest.mark.parametrize(
    "cell",
    [("mnist", "resnet18", 8, "pbu"), ("mnist", "convnext_tiny", 8, "pbu"),
     ("mnist", "resnet34", 3, "pbu"), ("mnist", "resnet34", 8, "row-shift")],
)  # fmt: skip
def test_what_the_paper_does_not_report_is_none(cell):
    assert figures(*cell) is None


def test_the_authors_recipe_stands_beside_their_own_figures():
    assert figures("mnist", "resnet34", 6, "pbu-paper") == figures("mnist", "resnet34", 6, "pbu")
