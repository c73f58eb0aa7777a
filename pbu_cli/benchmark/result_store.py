"""The measured cells of a benchmark on disk, one JSON file for each cell.

A file is either whole or absent, whenever a run is killed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pbu_cli import __version__
from pbu_cli.io.atomic_files import write_text
from pbu_cli.settings import SCHEMA


# The fields of Outcome and Cell are the JSON keys of the files, so their names must stay.
@dataclass(frozen=True)
class Outcome:
    """One result of a method.

    stage: tells several results of one run apart; empty for one. measures: by name; `a_df` and
    `a_dr`, in percent, are always there. seconds: of the method's work, without measuring.
    images: training images that the method read, each as often as it was read.
    """

    stage: str
    measures: Mapping[str, float]
    seconds: float
    images: int


@dataclass(frozen=True)
class Cell:
    """One method on one class and seed. Most methods have one outcome, some have several."""

    seed: int
    label: int
    method: str
    reads: str
    settings: Mapping[str, Any]
    outcomes: tuple[Outcome, ...]

    @property
    def name(self) -> str:
        return cell_name(self.seed, self.label, self.method)


def cell_name(seed: int, label: int, method: str) -> str:
    """The name of a cell's file, without its suffix.

    >>> cell_name(0, 8, "row-shift")
    'seed0-class8-row-shift'
    """
    return f"seed{seed}-class{label}-{method}"


def write(folder: Path, cell: Cell) -> None:
    """Write a cell atomically: a kill at any instant leaves the whole file, or none."""
    document = {"schema": SCHEMA, "pbu": __version__, **asdict(cell)}
    write_text(folder / f"{cell.name}.json", json.dumps(document, indent=2) + "\n")


def read(folder: Path, name: str, settings: Mapping[str, Any]) -> Cell | None:
    """The stored cell of this name, or None.

    None means that the file is absent or damaged, or that the cell was measured with other
    settings or by another version of pbu.
    """
    try:
        document = json.loads((folder / f"{name}.json").read_text())
        outcomes = tuple(Outcome(**outcome) for outcome in document["outcomes"])
        cell = Cell(
            document["seed"], document["label"], document["method"], document["reads"],
            document["settings"], outcomes,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None
    usable = (
        (document.get("schema"), document.get("pbu")) == (SCHEMA, __version__)
        and cell.settings == json.loads(json.dumps(settings))
        and cell.name == name
    )
    return cell if usable and cell.outcomes else None
