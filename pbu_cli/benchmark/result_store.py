"""What a benchmark has measured, a file for each cell of its grid: whole, or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pbu_cli import __version__
from pbu_cli.io.atomic_files import write_text
from pbu_cli.settings import SCHEMA


@dataclass(frozen=True)
class Outcome:
    """One result of a method. measures: by name; `a_df` and `a_dr`, in percent, are always there.

    seconds: of the work alone, not of measuring. images: training images handed to the method,
    each time counted.
    """

    stage: str
    measures: Mapping[str, float]
    seconds: float
    images: int


@dataclass(frozen=True)
class Cell:
    """One method on one class and seed: where most have one outcome, some have several."""

    seed: int
    label: int
    method: str
    reads: str
    settings: Mapping[str, Any]
    outcomes: tuple[Outcome, ...]

    @property
    def name(self) -> str:
        return f"seed{self.seed}-class{self.label}-{self.method}"


def write(folder: Path, cell: Cell) -> None:
    """Write a cell so that a kill at any instant leaves the whole file, or none."""
    document = {"schema": SCHEMA, "pbu": __version__, **asdict(cell)}
    write_text(folder / f"{cell.name}.json", json.dumps(document, indent=2) + "\n")


def read(folder: Path, name: str, settings: Mapping[str, Any]) -> Cell | None:
    """The cell of this name if it is there, whole, and was measured with these settings by this
    version of pbu."""
    try:
        found = json.loads((folder / f"{name}.json").read_text())
        outcomes = tuple(Outcome(**outcome) for outcome in found["outcomes"])
        cell = Cell(
            found["seed"], found["label"], found["method"], found["reads"], found["settings"],
            outcomes,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = (
        (found.get("schema"), found.get("pbu")) == (SCHEMA, __version__)
        and cell.settings == json.loads(json.dumps(settings))
        and cell.name == name
    )
    return cell if same and cell.outcomes else None
