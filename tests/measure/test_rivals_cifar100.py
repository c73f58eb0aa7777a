"""The CSV file of the rivals: what is in it is not measured again."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.measure.rivals_cifar100 import COLUMNS, add, stored


def row(**values: str) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "0") | values


def test_rows_are_added_below_one_header_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "rivals.csv"
    assert stored(path) == set()
    stages = [row(**{"class": "bear", "method": f"pour {stage}", "seed": "1"}) for stage in "PD"]
    add(path, stages)
    add(path, [row(**{"class": "bear", "method": "pbu", "seed": "0"})])
    assert stored(path) == {("bear", "pour", "1"), ("bear", "pbu", "0")}
    with path.open(newline="") as file:
        assert [r["method"] for r in csv.DictReader(file)] == ["pour P", "pour D", "pbu"]
