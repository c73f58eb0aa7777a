"""`--require`: what an evaluation has to reach."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pbu_cli.errors import InvalidUsage, printable
from pbu_cli.evaluation.measures import MEASURES

# The criterion on the estimated accuracy loss. Users write this name, so it stays as published.
ACCURACY_LOSS = "damage"
# The criterion on the change of the retained class that lost most, in points.
WORST_CLASS = "worst_class"
OF_ORIGINAL = (ACCURACY_LOSS, WORST_CLASS)  # a comparison with the original, never with `~`
# The flag without which a measure is unknown; empty where the forget images are enough.
NEEDED_FLAG = {
    "A_Df": "",
    "A_Dr": "--retain",
    ACCURACY_LOSS: "--original",
    WORST_CLASS: "--original and --retain",
} | {key: measure.needs for key, measure in MEASURES.items()}

Relation = Literal["<=", ">=", "~"]


@dataclass(frozen=True)
class Criterion:
    """A bound that a measure has to keep, in the measure's unit.

    With the relation `~` the bound is the largest difference from the retrained network's value,
    in either direction.
    """

    measure: str
    relation: Relation
    bound: float

    def __str__(self) -> str:
        return f"{self.measure}{self.relation}{self.bound:g}"

    @property
    def needs_audit(self) -> bool:
        """Whether only an audit measures it."""
        return self.measure in MEASURES

    def holds(self, value: float, retrained: float) -> bool:
        """Whether the value keeps the bound. `retrained` is used by the relation `~` alone."""
        if self.relation == "<=":
            return value <= self.bound
        if self.relation == ">=":
            return value >= self.bound
        return abs(value - retrained) <= self.bound


def parse(text: str) -> Criterion:
    """Read `A_Df<=1`, `A_Dr>=99.1`, `worst_class>=-5` or `probe~2`. Raises InvalidUsage.

    >>> parse("A_Df <= 0.5")
    Criterion(measure='A_Df', relation='<=', bound=0.5)
    """
    match = re.fullmatch(r"\s*(\w+)\s*(<=|>=|~)\s*(-?\d{1,3}(?:\.\d+)?)\s*", text)
    relation: Relation | None = None
    if match is not None and match[1] in NEEDED_FLAG:
        relation = "<=" if match[2] == "<=" else ">=" if match[2] == ">=" else "~"
        if relation == "~" and (match[1] in OF_ORIGINAL or match[3].startswith("-")):
            relation = None
    if match is None or relation is None:
        raise InvalidUsage(
            f"--require {printable(text)}: expected A_Df<=X or A_Dr>=X with X in percent, or"
            f" {ACCURACY_LOSS}<=X or {WORST_CLASS}>=-X in points, or MEASURE<=X, MEASURE>=X, or"
            f" MEASURE~X (within X of --retrained), where MEASURE is one of"
            f" {', '.join(NEEDED_FLAG)}"
        )
    return Criterion(match[1], relation, float(match[3]))


@dataclass(frozen=True)
class Requirement:
    """A criterion, held against what was measured. The fields are keys of the JSON document.

    value: of the checkpoint; None where it is unknown. retrained: the retrained network's value,
    for the relation `~`. basis: what the value is, of which networks and on which images.
    """

    requirement: str
    measure: str
    value: float | None
    bound: float
    retrained: float | None
    holds: bool
    basis: str
    message: str

    def document(self) -> dict[str, Any]:
        """The requirement in the JSON document."""
        fields = {key: value for key, value in vars(self).items() if key != "message"}
        return {"line": str(self), **fields}

    def __str__(self) -> str:
        """The line of one requirement: value and bound, whether it holds, and on what basis."""
        end = f" ({self.basis})" if self.basis else ""
        return f"{self.message}{': holds' if self.holds else ''}{end}"


def hold_against(
    criterion: Criterion,
    values: Mapping[str, float | None],
    retrained: Mapping[str, float | None] | None = None,
    basis: str = "",
) -> Requirement:
    """Hold a criterion against the measures, by name, of the checkpoint and the retrained network.

    No criterion holds for an unknown value.

    >>> print(hold_against(parse("A_Df<=1"), {"A_Df": 0.2}, basis="of 500 forget images"))
    A_Df is 0.20, required A_Df<=1: holds (of 500 forget images)
    """
    name, relative = criterion.measure, criterion.relation == "~"
    value = values.get(name)
    reference = (retrained or {}).get(name) if relative else None
    holds = False
    if relative and retrained is None:
        message = f"{name} of a retrained network is unknown, required {criterion}"
    elif value is None or math.isnan(value) or (relative and reference is None):
        without = f" without {NEEDED_FLAG[name]}" if NEEDED_FLAG[name] else ""
        message = f"{name} is unknown{without}, required {criterion}"
    else:
        holds = criterion.holds(value, math.nan if reference is None else reference)
        digits = max(2, MEASURES[name].places if name in MEASURES else 2)
        compared = (
            "" if reference is None else f" and {reference:.{digits}f} for the retrained network"
        )
        message = f"{name} is {value:.{digits}f}{compared}, required {criterion}"
    return Requirement(
        str(criterion), name, value, criterion.bound, reference, holds, basis, message
    )


def basis(criterion: Criterion, files: Mapping[str, str], images: Mapping[str, int]) -> str:
    """What the value of a criterion is: of which networks, and on which images.

    files: the names of the networks' files. images: how many, under the keys `forget` and `retain`.

    >>> basis(parse("A_Df<=1"), {"checkpoint": "no3.pt"}, {"forget": 500, "retain": 0})
    'percent of 500 forget images that no3.pt recognises'
    """
    checkpoint, measure = files["checkpoint"], criterion.measure
    forget = f"{images['forget']:,} forget images"
    retained = f"{images['retain']:,} retained images"
    if measure == "A_Df":
        text = f"percent of {forget} that {checkpoint} recognises"
    elif measure == "A_Dr":
        text = f"percent of {retained} that {checkpoint} recognises"
    elif measure == ACCURACY_LOSS:
        text = (
            f"points of A_Dr, estimated from how far the predictions of {checkpoint} on {forget}"
            f" are from those of {files.get('original', 'no original')}; no retained image was used"
        )
    else:
        shown = f"{forget} and {retained}" if images["retain"] else forget
        text = f"{MEASURES[measure].title} of {checkpoint} on {shown}"
    if criterion.relation == "~" and "retrained" in files:
        text += f", compared with {files['retrained']}"
    return printable(text, 1000)


def unmet(
    criteria: Sequence[Criterion],
    values: Mapping[str, float | None],
    retrained: Mapping[str, float | None] | None = None,
) -> list[str]:
    """One message for each criterion that does not hold.

    >>> unmet([parse("A_Df<=1"), parse("A_Dr>=99")], {"A_Df": 0.2, "A_Dr": 98.5})
    ['A_Dr is 98.50, required A_Dr>=99']
    >>> unmet([parse("probe~2")], {"probe": 91.0}, {"probe": 88.5})
    ['probe is 91.00 and 88.50 for the retrained network, required probe~2']
    """
    held = [hold_against(criterion, values, retrained) for criterion in criteria]
    return [str(requirement) for requirement in held if not requirement.holds]
