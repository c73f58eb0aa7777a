"""Cells on disk: as this version wrote them for this run, absent, or an error of one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pbu_cli.benchmark.result_store import Cell, Outcome, read, seal, write
from pbu_cli.errors import CheckpointError, PbuError

ORIGINAL = "0123456789abcdef" * 4
CELL = Cell(
    1, 8, "pbu-paper", "forget", {"alpha": 721.0, "inner": {"pair": (1, 2)}},
    (Outcome("epoch 1", {"a_df": 0.0, "a_dr": 98.24}, 1.25, 640),), ORIGINAL,
)  # fmt: skip


def read_cell(folder: Path) -> Cell | None:
    return read(folder, CELL.name, CELL.settings, ORIGINAL)


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_cell(folder)
    line = str(caught.value)
    assert line.startswith(f"{folder / CELL.name}.json: ")
    assert line.isprintable()
    assert "move it away or delete it" in line
    return line


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write(tmp_path, CELL)
    return tmp_path / f"{CELL.name}.json"


def forge(place: Path, **changes: Any) -> None:
    """Change fields and compute the digest again."""
    document = {**json.loads(place.read_text()), **changes}
    place.write_text(json.dumps({**document, "seal": seal(document)}))


def test_what_is_written_is_read(tmp_path: Path, place: Path) -> None:
    found = read_cell(tmp_path)
    assert found is not None
    assert (found.outcomes, found.original) == (CELL.outcomes, ORIGINAL)
    assert list(tmp_path.iterdir()) == [place]


def test_an_absent_cell_is_none(tmp_path: Path) -> None:
    assert read_cell(tmp_path) is None


def test_a_cell_of_other_settings_or_of_another_original_is_not_replaced(
    tmp_path: Path, place: Path
) -> None:
    with pytest.raises(CheckpointError, match="the settings of this run"):
        read(tmp_path, CELL.name, {"alpha": 631.0}, ORIGINAL)
    for other in ("f" * 64, None):
        with pytest.raises(CheckpointError, match="computed from the original beside it"):
            read(tmp_path, CELL.name, CELL.settings, other)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "null", '{"outcomes": 3}', '{"seal": 1}', '{"a": 1, "a": 2}',
     '{"seal":' + "[" * 100_000 + "]" * 100_000 + "}", '{"\\u001b[2J": NaN}', '{"seal": 1e999}'],
)  # fmt: skip
def test_a_damaged_cell_is_one_line(tmp_path: Path, place: Path, content: str) -> None:
    place.write_text(content)
    refused(tmp_path)


def test_an_edited_cell_is_noticed(tmp_path: Path, place: Path) -> None:
    place.write_text(place.read_text().replace("98.24", "99.99"))
    assert "with the digest that it had then" in refused(tmp_path)


def test_a_cell_of_another_version_is_named_as_such(tmp_path: Path, place: Path) -> None:
    forge(place, pbu="0.0.1")
    assert "expected a file of pbu" in refused(tmp_path)
    document = json.loads(place.read_text())
    del document["seal"]
    place.write_text(json.dumps(document))
    assert "older versions of pbu" in refused(tmp_path)


BAD_OUTCOMES = [
    {"stage": "\x1b[2J"}, {"stage": 3}, {"seconds": -1.0}, {"seconds": True}, {"seconds": "1"},
    {"seconds": 1e308}, {"images": 1.5}, {"images": -1}, {"images": 10**30}, {"more": 1},
    {"measures": {}}, {"measures": 3}, {"measures": {"a_df": 0.0}},
    {"measures": {"a_df": 0.0, "a_dr": 100.1}}, {"measures": {"a_df": None, "a_dr": 1.0}},
    {"measures": {"a_df": float("nan"), "a_dr": 1.0}},
    {"measures": {"a_df": 0.0, "a_dr": 1.0, "\x1b]0;x": 1.0}},
]  # fmt: skip


@pytest.mark.parametrize("change", BAD_OUTCOMES)
def test_a_forged_outcome_out_of_its_range_is_refused(
    tmp_path: Path, place: Path, change: dict[str, Any]
) -> None:
    outcome = {**json.loads(place.read_text())["outcomes"][0], **change}
    forge(place, outcomes=[outcome])
    refused(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"seed": True}, {"seed": "1"}, {"label": 8.0}, {"label": -1}, {"method": "pbu"},
     {"method": ["pbu-paper"]}, {"reads": "all"}, {"reads": []}, {"settings": 3},
     {"outcomes": []}, {"outcomes": {}}, {"outcomes": [1]}, {"original": 3}, {"original": "x"},
     {"extra": 1}],
)  # fmt: skip
def test_a_forged_field_is_refused(tmp_path: Path, place: Path, change: dict[str, Any]) -> None:
    forge(place, **change)
    refused(tmp_path)


def test_a_consistent_forgery_is_read(tmp_path: Path, place: Path) -> None:
    """The digest shows accidents. The README of the benchmark says that it shows no forgery."""
    outcome = json.loads(place.read_text())["outcomes"][0]
    forge(place, outcomes=[{**outcome, "measures": {"a_df": 0.0, "a_dr": 99.0}}])
    found = read_cell(tmp_path)
    assert found is not None
    assert found.outcomes[0].measures["a_dr"] == 99.0


@pytest.mark.parametrize("kind", ["fifo", "zero", "folder", "large"])
def test_what_is_no_file_of_a_cell_is_one_line_at_once(
    tmp_path: Path, place: Path, kind: str
) -> None:
    place.unlink()
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "zero":
        place.symlink_to("/dev/zero")
    elif kind == "folder":
        place.mkdir()
    else:
        with place.open("wb") as file:
            file.truncate(1 << 40)
    refused(tmp_path)


def test_a_folder_that_is_not_there_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(PbuError, match="choose another output"):
        write(tmp_path / "none", CELL)
