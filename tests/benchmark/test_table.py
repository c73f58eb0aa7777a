"""Rows of the table."""

from __future__ import annotations

import pytest

from pbu_cli.benchmark.result_store import Cell, Outcome
from pbu_cli.benchmark.table import plot_points, summarise, table


def cell(seed: int, a_dr: float, label: int = 8, **more: float) -> Cell:
    outcome = Outcome("", {"a_df": 0.0, "a_dr": a_dr, **more}, 2.0 * seed, 10)
    return Cell(seed, label, "pbu", "forget", {}, (outcome,), "0" * 64)


def test_rows_are_means_over_the_seeds() -> None:
    (row,) = summarise([cell(0, 96.0), cell(1, 98.0)], "mnist", "resnet34")
    assert (row.seeds, row.mean["a_dr"], row.seconds, row.images) == (2, 97.0, 1.0, 10)
    assert row.std == {"a_df": 0.0, "a_dr": pytest.approx(2**0.5)}
    (alone,) = summarise([cell(0, 96.0)], "mnist", "resnet34")
    assert alone.std is None


def test_the_papers_figures_stand_at_the_end_of_the_row() -> None:
    columns, (row,) = table(summarise([cell(0, 96.0)], "mnist", "resnet34"))
    assert dict(zip(columns, row, strict=True))["paper A_Dr"] == "98.24 ± 0.36"
    columns, (row,) = table(summarise([cell(0, 96.0)], "mnist", "resnet18"))
    assert row[-2:] == ["", ""]


def test_every_measure_has_a_column() -> None:
    measured = [cell(0, 96.0, odds_auc=0.9876, other=71.5)]
    columns, (row,) = table(summarise(measured, "mnist", "resnet34"))
    shown = dict(zip(columns, row, strict=True))
    assert (shown["odds AUC"], shown["other"]) == ("0.988", "71.50")


def test_a_point_is_the_mean_over_classes() -> None:
    rows = summarise([cell(0, 90.0, 1), cell(0, 98.0, 2)], "mnist", "resnet34")
    (point,) = plot_points(rows)
    assert (point.name, point.a_dr) == ("pbu", 94.0)
