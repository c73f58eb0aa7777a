"""`--require`: what an evaluation has to reach."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pbu_cli.errors import InvalidUsage, printable
from pbu_cli.evaluation.measures import MEASURES

DAMAGE = "damage"  # has no counterpart in a retrained network
NEEDS = {"A_Df": "", "A_Dr": "--retain", DAMAGE: "--original"} | {
    key: one.needs for key, one in MEASURES.items()
}

Relation = Literal["<=", ">=", "~"]


@dataclass(frozen=True)
class Criterion:
    """A bound that a measure has to keep, in the measure's unit; `~`: the most by which it may
    differ from the retrained network's, on either side."""

    measure: str
    relation: Relation
    bound: float

    def __str__(self) -> str:
        return f"{self.measure}{self.relation}{self.bound:g}"

    @property
    def of_audit(self) -> bool:
        return self.measure in MEASURES

    def holds(self, value: float, retrained: float) -> bool:
        if self.relation == "<=":
            return value <= self.bound
        if self.relation == ">=":
            return value >= self.bound
        return abs(value - retrained) <= self.bound


def parse(text: str) -> Criterion:
    """Read `A_Df<=1`, `A_Dr>=99.1` or `probe~2`. Raises InvalidUsage.

    >>> parse("A_Df <= 0.5")
    Criterion(measure='A_Df', relation='<=', bound=0.5)
    """
    found = re.fullmatch(r"\s*(\w+)\s*(<=|>=|~)\s*(-?\d{1,3}(?:\.\d+)?)\s*", text)
    relation: Relation | None = None
    if found is not None and found[1] in NEEDS:
        relation = "<=" if found[2] == "<=" else ">=" if found[2] == ">=" else "~"
        if relation == "~" and (found[1] == DAMAGE or found[3].startswith("-")):
            relation = None
    if found is None or relation is None:
        raise InvalidUsage(
            f"--require {printable(text)}: expected A_Df<=X or A_Dr>=X with X in percent, or"
            " damage<=X in points, or MEASURE<=X, MEASURE>=X, or MEASURE~X (within X of"
            f" --retrained), with a measure of {', '.join(NEEDS)}"
        )
    return Criterion(found[1], relation, float(found[3]))


def unmet(
    criteria: Sequence[Criterion],
    values: Mapping[str, float | None],
    retrained: Mapping[str, float | None] | None = None,
) -> list[str]:
    """What does not hold, in words; what is unknown meets nothing.

    values, retrained: the checkpoint's measures and the retrained network's, by name.

    >>> unmet([parse("A_Df<=1"), parse("A_Dr>=99")], {"A_Df": 0.2, "A_Dr": 98.5})
    ['A_Dr is 98.50, required A_Dr>=99']
    >>> unmet([parse("probe~2")], {"probe": 91.0}, {"probe": 88.5})
    ['probe is 91.00 and 88.50 of the retrained network, required probe~2']
    """
    failed = []
    for criterion in criteria:
        name = criterion.measure
        value = values.get(name)
        other = (retrained or {}).get(name)
        relative = criterion.relation == "~"
        if relative and retrained is None:
            failed.append(f"{name} of a retrained network is unknown, required {criterion}")
        elif value is None or math.isnan(value) or (relative and other is None):
            without = f" without {NEEDS[name]}" if NEEDS[name] else ""
            failed.append(f"{name} is unknown{without}, required {criterion}")
        elif not criterion.holds(value, math.nan if other is None else other):
            digits = MEASURES[name].places if name in MEASURES else 2
            beside = f" and {other:.{max(2, digits)}f} of the retrained network" if relative else ""
            failed.append(f"{name} is {value:.{max(2, digits)}f}{beside}, required {criterion}")
    return failed
