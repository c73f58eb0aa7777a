"""`--require`: what an evaluation has to reach."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pbu_cli.errors import InvalidUsage, printable


@dataclass(frozen=True)
class Criterion:
    """A bound, in percent, that A_Df or A_Dr has to keep."""

    measure: Literal["A_Df", "A_Dr"]
    at_most: bool
    bound: float

    def __str__(self) -> str:
        return f"{self.measure}{'<=' if self.at_most else '>='}{self.bound:g}"


def parse(text: str) -> Criterion:
    """Read `A_Df<=1` or `A_Dr>=99.1`. Raises InvalidUsage.

    >>> parse("A_Df <= 0.5")
    Criterion(measure='A_Df', at_most=True, bound=0.5)
    """
    found = re.fullmatch(r"\s*(A_D[fr])\s*(<=|>=)\s*(\d{1,3}(?:\.\d+)?)\s*", text)
    if found is None:
        raise InvalidUsage(
            f"--require {printable(text)}: expected A_Df<=X or A_Dr>=X with X in percent"
        )
    measure: Literal["A_Df", "A_Dr"] = "A_Df" if found[1] == "A_Df" else "A_Dr"
    return Criterion(measure, found[2] == "<=", float(found[3]))


def unmet(criteria: Sequence[Criterion], a_df: float, a_dr: float | None) -> list[str]:
    """What does not hold, in words; an unknown A_Dr meets nothing.

    >>> unmet([parse("A_Df<=1"), parse("A_Dr>=99")], 0.2, 98.5)
    ['A_Dr is 98.50, required A_Dr>=99']
    """
    failed = []
    for criterion in criteria:
        value = a_df if criterion.measure == "A_Df" else a_dr
        if value is None:
            failed.append(f"{criterion.measure} is unknown without --retain, required {criterion}")
        elif (value > criterion.bound) if criterion.at_most else (value < criterion.bound):
            failed.append(f"{criterion.measure} is {value:.2f}, required {criterion}")
    return failed
