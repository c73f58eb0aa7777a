"""An audit as tables of text, for the console to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pbu_cli.evaluation.measures import MEASURES

if TYPE_CHECKING:
    from pbu_cli.audit.estimates import Estimate
    from pbu_cli.audit.run import NetworkAudit

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Table:
    """A table: its title, the titles of its columns, its rows, and the lines below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    captions: Sequence[str] = ()


def audit_tables(audits: Sequence[NetworkAudit], seed: int, sampled: str = "") -> list[Table]:
    """The measures; and, where known, relearning, membership inference and similarity in detail.

    sampled: how many of the retained images the audit has read, where it is not all.
    """
    return [
        _measures(audits, seed, sampled),
        *_relearning_curves(audits),
        *_membership(audits),
        *_similarity(audits),
    ]


def cell(estimate: Estimate | None, places: int) -> str:
    """An estimate as text.

    >>> cell(None, 1)
    'unknown'
    """
    if estimate is None:
        return UNKNOWN
    return _with_interval(estimate.value, estimate.interval, places)


def _with_interval(value: float, interval: tuple[float, float], places: int) -> str:
    if math.isnan(value):
        return UNKNOWN
    if not math.isfinite(value):
        return f"{value}"
    # Without a space, so that a narrow terminal breaks before the interval and not inside it.
    return f"{value:.{places}f} [{interval[0]:.{places}f},{interval[1]:.{places}f}]"


def _measures(audits: Sequence[NetworkAudit], seed: int, sampled: str) -> Table:
    """All measures by network. A measure that no network has is a row of `unknown`, and a caption
    names the flag that it needs."""
    rows = [
        (measure.title, *(cell(a.measures.get(key), measure.places) for a in audits))
        for key, measure in MEASURES.items()
    ]
    captions = [f"in brackets 95 % intervals; seed {seed}; compare with the retrained column"]
    if sampled:
        captions.append(f"on {sampled}, drawn by class with this seed; A_Dr above is of all")
    captions += [
        f"{measure.title}{f' [{measure.needs}]' if measure.needs else ''}: {measure.definition}"
        for measure in MEASURES.values()
    ]
    known = {key for key in MEASURES if any(key in a.measures for a in audits)}
    given_flags = _flags(known)
    missing_flags = sorted(_flags(MEASURES.keys() - known) - given_flags)
    if missing_flags:
        captions.append(f"unknown: needs {' or '.join(missing_flags)}, or more images")
    return Table("What is left of the class", ("", *(a.name for a in audits)), rows, captions)


def _flags(keys: AbstractSet[str]) -> set[str]:
    """The flags that these measures need."""
    return {flag for key in keys for flag in MEASURES[key].needs.split(" and ") if flag}


def _relearning_curves(audits: Sequence[NetworkAudit]) -> list[Table]:
    """One table: numbers of steps down, networks across."""
    curves = [a.relearning.curve if a.relearning else {} for a in audits]
    if not any(curves):
        return []
    rows = [
        (str(k), *(f"{curve[k]:.1f}" if k in curve else UNKNOWN for curve in curves))
        for k in sorted({k for curve in curves for k in curve})
    ]
    spread = [
        f"{a.relearning.lowest:.1f} to {a.relearning.highest:.1f}" if a.relearning else ""
        for a in audits
    ]
    return [
        Table(
            "Relearnt after at most k steps on 10 forget images (%)",
            ("k", *(a.name for a in audits)),
            [*rows, ("best, by draw", *spread)],
        )
    ]


def _membership(audits: Sequence[NetworkAudit]) -> list[Table]:
    """One table: signals down, networks across."""
    advantages = [a.membership for a in audits]
    signals = next((list(found) for found in advantages if found), [])
    if not signals:
        return []
    rows = [
        (
            signal,
            *(
                UNKNOWN
                if found is None
                else _with_interval(found[signal].value, found[signal].interval, 3)
                for found in advantages
            ),
        )
        for signal in signals
    ]
    title = "Membership inference by signal, |AUC - 0.5|"
    return [Table(title, ("", *(a.name for a in audits)), rows)]


def _similarity(audits: Sequence[NetworkAudit]) -> list[Table]:
    """One table: stages down, pairs of networks across; each pair is shown once."""
    by_pair: dict[str, Mapping[str, Mapping[str, Estimate]]] = {}
    for audited in audits:
        keys = {key for stage in audited.likeness.values() for key in stage}
        for key in sorted(keys):
            other, _, side = key.partition(", ")
            if f"{other} - {audited.name}, {side}" not in by_pair:
                by_pair[f"{audited.name} - {other}, {side}"] = audited.likeness
    if not by_pair:
        return []
    stages = list(dict.fromkeys(stage for likeness in by_pair.values() for stage in likeness))
    rows = []
    for stage in stages:
        cells = []
        for pair, likeness in by_pair.items():
            _, _, key = pair.partition(" - ")
            cells.append(cell(likeness.get(stage, {}).get(key), 2))
        rows.append((stage, *cells))
    caption = (
        "linear, unbiased; feature maps averaged to at most 8 x 8 places; 1 is equal up to"
        " rotation; at most 500 images; jackknife"
    )
    title = "CKA by stage, on forget and on retained images"
    return [Table(title, ("", *by_pair), rows, (caption,))]
