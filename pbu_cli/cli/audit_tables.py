"""An audit as tables of text: (title, columns, rows, captions), for whoever draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pbu_cli.evaluation.measures import MEASURES

if TYPE_CHECKING:
    from pbu_cli.audit.run import Audited, Estimate


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    captions: Sequence[str] = ()


def audit_tables(audits: Sequence[Audited], seed: int) -> list[Table]:
    """What is left of the class; the relearning curve; membership by signal; likeness by stage.

    A measure that no network has is a row of `unknown`, with the flag that would tell it.
    """
    names = [audited.name for audited in audits]
    rows = [
        (one.title, *(cell(a.measures.get(key), one.places) for a in audits))
        for key, one in MEASURES.items()
    ]
    captions = [f"in brackets 95 % intervals; seed {seed}; compare with the retrained column"]
    captions += [
        f"{one.title}{f' [{one.needs}]' if one.needs else ''}: {one.definition}"
        for one in MEASURES.values()
    ]
    missing = sorted(
        {
            one.needs
            for key, one in MEASURES.items()
            if one.needs and not any(key in a.measures for a in audits)
        }
    )
    if missing:
        captions.append(f"unknown: needs {' or '.join(missing)}, or more images")
    tables = [Table("What is left of the class", ("", *names), rows, captions)]
    curves = [a.relearning.curve if a.relearning else {} for a in audits]
    if any(curves):
        steps = sorted({k for curve in curves for k in curve})
        table = [(str(k), *(f"{c[k]:.1f}" if k in c else "unknown" for c in curves)) for k in steps]
        spread = [
            f"{a.relearning.lowest:.1f} to {a.relearning.highest:.1f}" if a.relearning else ""
            for a in audits
        ]
        tables.append(
            Table(
                "Relearnt after at most k steps on 10 forget images (%)",
                ("k", *names),
                [*table, ("best, by draw", *spread)],
            )
        )
    attacks = [a.membership for a in audits]
    if any(attacks):
        signals = list(next(found for found in attacks if found))
        tables.append(
            Table(
                "Membership inference by signal, |AUC - 0.5|",
                ("", *names),
                [
                    (
                        signal,
                        *(
                            "unknown"
                            if a is None
                            else _with(a[signal].value, a[signal].interval, 3)
                            for a in attacks
                        ),
                    )
                    for signal in signals
                ],
            )
        )
    return [*tables, *_likeness(audits)]


def cell(estimate: Estimate | None, places: int) -> str:
    """
    >>> cell(None, 1)
    'unknown'
    """
    return "unknown" if estimate is None else _with(estimate.value, estimate.interval, places)


def _with(value: float, interval: tuple[float, float], places: int) -> str:
    if math.isnan(value):
        return "unknown"
    if not math.isfinite(value):
        return f"{value}"
    # Without a space, so that a narrow terminal breaks before the interval and not inside it.
    return f"{value:.{places}f} [{interval[0]:.{places}f},{interval[1]:.{places}f}]"


def _likeness(audits: Sequence[Audited]) -> list[Table]:
    """One table: stages down, pairs of networks across."""
    pairs: dict[str, Mapping[str, Mapping[str, Estimate]]] = {}
    for audited in audits:
        others = {pair for stage in audited.likeness.values() for pair in stage}
        for pair in sorted(others):
            other, _, side = pair.partition(", ")
            if f"{other} - {audited.name}, {side}" not in pairs:
                pairs[f"{audited.name} - {other}, {side}"] = audited.likeness
    if not pairs:
        return []
    stages = list(dict.fromkeys(stage for likeness in pairs.values() for stage in likeness))
    rows = []
    for stage in stages:
        cells = []
        for pair, likeness in pairs.items():
            _, _, other = pair.partition(" - ")
            cells.append(cell(likeness.get(stage, {}).get(other), 2))
        rows.append((stage, *cells))
    return [
        Table(
            "CKA by stage, on forget and on retained images",
            ("", *pairs),
            rows,
            (
                "linear, unbiased; feature maps averaged to at most 8 x 8 places; 1 is equal up to"
                " rotation; at most 500 images; jackknife",
            ),
        )
    ]
