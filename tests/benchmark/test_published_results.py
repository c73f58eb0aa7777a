"""The paper's figures, found under the names that the benchmark uses."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pbu_cli.benchmark.methods import NAMES
from pbu_cli.benchmark.protocol import ORIGINAL
from pbu_cli.benchmark.published_results import PublishedResult, find_published
from tests.measure.archives import SHARED

DATASETS = {"MNIST": "mnist", "CIFAR-100": "cifar100", "FOOD-101": "food101"}
MODELS = {
    "ResNet-34": "resnet34", "ResNet-50": "resnet50", "DenseNet-121": "densenet121",
    "ConvNeXt-L": "convnext_large",
}  # fmt: skip


def test_every_published_figure_is_found(shared: Path) -> None:
    rows = list(csv.DictReader((SHARED / "paper_table.csv").open()))
    assert len(rows) == 27 * 6
    for row in rows:
        found = find_published(
            DATASETS[row["dataset"]], MODELS[row["model"]], int(row["class"]), row["method"]
        )
        assert found == PublishedResult(
            (float(row["A_Df_mean"]), float(row["A_Df_std"])),
            (float(row["A_Dr_mean"]), float(row["A_Dr_std"])),
        )
        assert row["method"] in (*NAMES, ORIGINAL)


@pytest.mark.parametrize(
    "cell",
    [("mnist", "resnet18", 8, "pbu"), ("mnist", "convnext_tiny", 8, "pbu"),
     ("mnist", "resnet34", 3, "pbu"), ("mnist", "resnet34", 8, "row-shift")],
)  # fmt: skip
def test_what_the_paper_does_not_report_is_none(cell: tuple[str, str, int, str]) -> None:
    assert find_published(*cell) is None


def test_the_authors_recipe_stands_beside_their_own_figures() -> None:
    assert find_published("mnist", "resnet34", 6, "pbu-paper") == find_published(
        "mnist", "resnet34", 6, "pbu"
    )
