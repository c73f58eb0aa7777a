"""Cells on disk: whole, of these settings, or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pbu_cli.benchmark.result_store import Cell, Outcome, read, write
from pbu_cli.errors import PbuError

CELL = Cell(
    1, 8, "pbu-paper", "forget", {"alpha": 721.0, "inner": {"pair": (1, 2)}},
    (Outcome("epoch 1", {"a_df": 0.0, "a_dr": 98.24}, 1.25, 640),),
)  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, CELL)
    found = read(tmp_path, CELL.name, CELL.settings)
    assert found is not None
    assert found.outcomes == CELL.outcomes
    assert [path.name for path in tmp_path.iterdir()] == ["seed1-class8-pbu-paper.json"]


def test_other_settings_are_another_cell(tmp_path: Path) -> None:
    write(tmp_path, CELL)
    assert read(tmp_path, CELL.name, {"alpha": 631.0}) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"outcomes": 3}', '{"outcomes": []}'])
def test_a_damaged_cell_is_none(tmp_path: Path, content: str) -> None:
    write(tmp_path, CELL)
    (tmp_path / f"{CELL.name}.json").write_text(content)
    assert read(tmp_path, CELL.name, CELL.settings) is None


def test_a_folder_that_is_not_there_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(PbuError, match="choose another output"):
        write(tmp_path / "none", CELL)


def test_a_cell_of_another_version_is_measured_again(tmp_path: Path) -> None:
    write(tmp_path, CELL)
    place = tmp_path / f"{CELL.name}.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "pbu": "0.0.1"}))
    assert read(tmp_path, CELL.name, CELL.settings) is None
