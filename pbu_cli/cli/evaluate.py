"""`pbu evaluate`: the accuracies, the audit, what was required."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pbu_cli.cli.options import (
    IMAGES,
    NETWORK,
    Arch,
    BatchSize,
    Channels,
    Checkpoint,
    Deterministic,
    Device,
    Forget,
    Json,
    LabelFlag,
    Mean,
    Quiet,
    Record,
    Require,
    Seed,
    Size,
    SkipBad,
    Std,
    input_options,
)
from pbu_cli.cli.session import Log, finish, heading, open_session
from pbu_cli.errors import InvalidUsage
from pbu_cli.evaluation.measures import MEASURES

if TYPE_CHECKING:
    from pbu_cli.audit.run import Audited
    from pbu_cli.cli.console import Screen
    from pbu_cli.evaluation.compare import Comparison
    from pbu_cli.settings import InputOptions


CONTROL = (
    "head mask: the original with the forgotten logit at minus infinity. It forgets nothing and",
    "still gets A_Df = 0: what accuracy says has to be read against it.",
)
LOSS = "loss of A_Dr, estimated from the forget images alone"


def evaluate(
    checkpoint: Checkpoint,
    forget: Forget,
    retain: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|FILE.csv",
            help="Retained images: a folder of class folders, or lines of path,label.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Before forgetting, for comparison and control.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    retrained: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Trained without the class, for comparison.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit",
            help="Attack too: probe, odds, relearning, membership, likeness to --retrained.",
        ),
    ] = False,
    members: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="For --audit: forget images that were trained on, against --forget images that"
            " were not.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    require: Require = None,
    arch: Arch = None,
    device: Device = "auto",
    deterministic: Deterministic = False,
    batch_size: BatchSize = 256,
    label: LabelFlag = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    channels: Channels = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    record: Record = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure what is forgotten and what is kept, beside the original and a free control."""
    from pbu_cli.cli.console import percent
    from pbu_cli.evaluation.requirements import DAMAGE, parse, unmet
    from pbu_cli.records.writer import check_appendable, record_evaluation

    screen, log = open_session(as_json, quiet)
    options = input_options(
        arch, label, mean, std, size, channels, device, batch_size, skip_bad, deterministic
    )
    if record is not None:
        check_appendable(record, checkpoint)
    criteria = [parse(text) for text in require or ()]
    strict = [str(criterion) for criterion in criteria if criterion.of_audit]
    if not audit and (strict or members):
        raise InvalidUsage(
            f"{f'--require {strict[0]}' if strict else '--members'}: only measured with --audit"
        )
    from pbu_cli.evaluation.compare import compare
    from pbu_cli.evaluation.evaluate import scored

    comparison = compare(
        checkpoint,
        forget,
        options,
        log,
        retain=retain,
        original=original,
        retrained=retrained,
        stdin=getattr(sys.stdin, "buffer", None),
        inside=audit,
    )
    result = scored(comparison)
    lost = result.damage
    log.warn(result.warnings)
    rows = [
        (s.name, percent(s.a_df), _range(s.a_df_interval), percent(s.a_dr), _range(s.a_dr_interval))
        for s in result.scores
    ]
    used = result.images
    retained = f"{used['retain']:,} retained" if used["retain"] else "no retained"
    screen.table(
        f"Accuracy on {used['forget']:,} forget and {retained} images (%)",
        ("", "A_Df", "95 %", "A_Dr", "95 %"),
        rows,
        *(() if lost is None else (*CONTROL, f"{LOSS}: {lost} points")),
    )
    classes = sorted({c for s in result.scores for c in s.per_class})
    screen.table(
        "Accuracy per class (%)",
        ("class", *(s.name for s in result.scores)),
        [
            (result.loaded.class_name(c), *(percent(s.per_class.get(c)) for s in result.scores))
            for c in classes
        ],
    )
    screen.table(
        "Where the forget images go (%)",
        ("answered", *(s.name for s in result.scores)),
        [
            (result.loaded.class_name(c), *(f"{s.answers.get(c, 0):.2f}" for s in result.scores))
            for c in sorted({c for s in result.scores for c in s.answers})
        ],
    )
    audited = _audit(comparison, members, options, seed, screen, log) if audit else ()
    found = {s.name: {"A_Df": s.a_df, "A_Dr": s.a_dr} for s in result.scores}
    for one in audited:
        found[one.name] |= {key: estimate.value for key, estimate in one.measures.items()}
    found["checkpoint"][DAMAGE] = None if lost is None else lost.estimate
    failed = unmet(criteria, found["checkpoint"], found.get("retrained"))
    document = {
        **heading("evaluate", log),
        "images": result.images,
        "skipped": result.skipped,
        "scores": [vars(s) for s in result.scores],
        "damage": None if lost is None else vars(lost),
        **_audit_document(audited, seed),
    }
    if record is not None:
        record_evaluation(
            record,
            {role: loaded.checkpoint for role, loaded in comparison.loaded_models.items()},
            device=result.loaded.device,
            arch=arch,
            document={
                **document,
                "settings": {**vars(options), "seed": seed, "audit": audit},
                "require": require or [],
            },
        )
        screen.line(f"wrote {record}")
    finish(
        screen,
        document,
        f"{checkpoint}: {'; '.join(failed)}" if failed else "",
    )


def _audit(
    comparison: Comparison,
    members: list[str] | None,
    options: InputOptions,
    seed: int,
    screen: Screen,
    log: Log,
) -> tuple[Audited, ...]:
    from pbu_cli.audit.run import audit, read_members
    from pbu_cli.cli.audit_tables import audit_tables

    known = read_members(members, comparison.prepared, options, log) if members else None
    names = list(comparison.answers)
    with screen.progress("auditing", len(names)) as bar:
        audited = audit(
            comparison,
            members=known,
            seed=seed,
            done=lambda name: bar(names.index(name), name),
        )
    for table in audit_tables(audited, seed):
        screen.table(table.title, table.columns, table.rows, *table.captions)
    return audited


def _audit_document(audited: Sequence[Audited], seed: int) -> dict[str, Any]:
    """The audit of the JSON document; what is unknown is null there."""
    if not audited:
        return {}
    networks = [
        {
            **asdict(one),
            "measures": {key: asdict(one).get("measures", {}).get(key) for key in MEASURES},
        }
        for one in audited
    ]
    measures = {key: asdict(measure) for key, measure in MEASURES.items()}
    return {"audit": {"seed": seed, "measures": measures, "networks": networks}}


def _range(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"
