"""The measured cells of a benchmark on disk, one JSON file for each cell.

A file is either whole or absent, whenever a run is killed. Files are not trusted: every field is
checked, the digest of the original's tensors binds a cell to the network that it was computed from,
and a digest of the cell itself shows changes. Neither shows a forgery that is consistent in itself,
because a forger can compute both.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pbu_cli import __version__
from pbu_cli.errors import CheckpointError, printable
from pbu_cli.io.atomic_files import write_text
from pbu_cli.io.regular_files import read_whole
from pbu_cli.io.strict_json import from_json
from pbu_cli.settings import SCHEMA

MAX_BYTES = 1 << 20  # of a cell's file
# The smallest and the largest value of every measure that a cell may hold, the first two always.
RANGES = {"a_df": (0.0, 100.0), "a_dr": (0.0, 100.0), "odds_auc": (0.0, 1.0)}
MAX_SECONDS, MAX_IMAGES = 1e9, 1 << 50
READS = ("nothing", "forget", "retained", "both")
STAGE = re.compile(r"[\w .,:=-]{0,40}")


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
    """One method on one class and seed. Most methods have one outcome, some have several.

    original: the digest of the tensors of the network that the method began with.
    """

    seed: int
    label: int
    method: str
    reads: str
    settings: Mapping[str, Any]
    outcomes: tuple[Outcome, ...]
    original: str

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
    sealed = {**document, "seal": seal(document)}
    write_text(folder / f"{cell.name}.json", json.dumps(sealed, indent=2) + "\n")


def seal(document: Mapping[str, Any]) -> str:
    """The sha256 of a document's JSON without the key `seal`, with sorted keys and no spaces."""
    rest = {key: value for key, value in document.items() if key != "seal"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read(folder: Path, name: str, settings: Mapping[str, Any], original: str | None) -> Cell | None:
    """The stored cell of this name, None where there is none.

    original: the digest of the tensors of its seed's original, None where there is no original.
    Raises CheckpointError where the file is not a cell that this version of pbu wrote with these
    settings from this original. It is never replaced without a word.
    """
    path = folder / f"{name}.json"
    try:
        document = read_document(path)
        cell = _cell(document)
        _expect(cell.name == name, f"the cell {name}, got {cell.name}")
        _expect(cell.settings == json.loads(json.dumps(settings)), "the settings of this run")
        _expect(cell.original == original, "a cell computed from the original beside it")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None
    return cell


def read_document(path: Path) -> dict[str, Any]:
    """The sealed JSON object in a file of this version of pbu. Raises OSError or ValueError."""
    document = from_json(read_whole(path, MAX_BYTES))
    _expect(isinstance(document, dict), "an object")
    _expect("seal" in document, "a file with its own digest; older versions of pbu wrote none")
    versions = document.get("schema"), document.get("pbu")
    _expect(versions == (SCHEMA, __version__), f"a file of pbu {__version__}")
    try:
        unchanged = seal(document) == document["seal"]
    except RecursionError:
        unchanged = False
    _expect(unchanged, "the file as pbu wrote it, with the digest that it had then")
    found: dict[str, Any] = document
    return found


def damaged(path: Path, error: OSError | ValueError) -> CheckpointError:
    """The error for a file that is not what pbu wrote there."""
    reason = error.strerror if isinstance(error, OSError) else error
    return CheckpointError(
        f"{printable(path)}: cannot be used ({printable(reason)}); move it away or delete it, and"
        " run again to compute it anew"
    )


def is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def is_cost(seconds: object, images: object) -> bool:
    """Whether both are numbers that a run can have taken."""
    return (
        _is_number(seconds, 0.0, MAX_SECONDS) and type(images) is int and 0 <= images <= MAX_IMAGES
    )


def _cell(document: Mapping[str, Any]) -> Cell:
    """The cell in a document. Raises ValueError where a field is not as pbu writes it."""
    names = {"schema", "pbu", "seal", *Cell.__dataclass_fields__}
    _expect(set(document) == names, "the fields of a cell")
    for key in ("seed", "label"):
        _expect(type(document[key]) is int and 0 <= document[key] < 1 << 63, f"a {key}")
    _expect(isinstance(document["method"], str), "the name of a method")
    _expect(document["reads"] in READS, "what the method reads")
    _expect(isinstance(document["settings"], dict), "settings")
    _expect(is_digest(document["original"]), "the digest of an original")
    listed = document["outcomes"]
    _expect(isinstance(listed, list) and 0 < len(listed) <= 1000, "outcomes")
    outcomes = tuple(_outcome(one) for one in listed)
    _expect(len({frozenset(one.measures) for one in outcomes}) == 1, "the same measures in all")
    fields = {key: document[key] for key in Cell.__dataclass_fields__}
    return Cell(**{**fields, "outcomes": outcomes})


def _outcome(found: Any) -> Outcome:
    fields = set(Outcome.__dataclass_fields__)
    _expect(isinstance(found, dict) and set(found) == fields, "the fields of an outcome")
    stage, measures = found["stage"], found["measures"]
    _expect(isinstance(stage, str) and STAGE.fullmatch(stage) is not None, "the name of a stage")
    _expect(isinstance(measures, dict) and {"a_df", "a_dr"} <= set(measures), "a_df and a_dr")
    for name, value in measures.items():
        known = name in RANGES and _is_number(value, *RANGES[name])
        _expect(known, f"a measure in its range, got {printable(name, 40)}")
    _expect(is_cost(found["seconds"], found["images"]), "seconds and images")
    return Outcome(**found)


def _is_number(value: object, low: float, high: float) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool)
        and math.isfinite(value) and low <= value <= high
    )  # fmt: skip


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"expected {what}")
