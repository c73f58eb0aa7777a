"""`pbu evaluate`: the accuracies, the audit, and whether what was required holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pbu_cli.cli.flags.parsing import input_options
from pbu_cli.cli.flags.shared import (
    IMAGES,
    NETWORK,
    Arch,
    BatchSize,
    Channels,
    Checkpoint,
    ClassIndex,
    Deterministic,
    Device,
    Forget,
    Json,
    LabelFlag,
    Mean,
    NoExifRotation,
    Preset,
    Quiet,
    Record,
    Require,
    Seed,
    Size,
    SkipBad,
    StateDict,
    Std,
    Verbose,
)
from pbu_cli.cli.session import finish, open_session

Retain = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|FILE.csv",
        help="Retained images: a folder of class folders, or lines of path,label.",
        rich_help_panel=IMAGES,
    ),
]
RetainOrder = Annotated[
    Literal["name", "position", "one-based"] | None,
    typer.Option(
        help="How the folders of --retain stand for the classes: by name or number, by alphabetical"
        " position as in torchvision's ImageFolder, or by number less one.",
        show_default="name, held against the predictions",
        rich_help_panel=IMAGES,
    ),
]
Original = Annotated[
    Path | None,
    typer.Option(
        readable=False,
        metavar="CHECKPOINT",
        help="The checkpoint before unlearning, to compare with. It brings the control too.",
        rich_help_panel=NETWORK,
    ),
]
Retrained = Annotated[
    Path | None,
    typer.Option(
        readable=False,
        metavar="CHECKPOINT",
        help="A network trained without the class, to compare with.",
        rich_help_panel=NETWORK,
    ),
]
Forgotten = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CLASS",
        help="A further class that was forgotten on purpose: A_Dr leaves it out. May be repeated.",
        rich_help_panel=IMAGES,
    ),
]
Audit = Annotated[
    bool,
    typer.Option(
        "--audit",
        help="Measure what is left inside the network too: probes, odds, relearning, prototypes,"
        " noisy images, membership, similarity to --retrained.",
    ),
]
Members = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIR",
        help="For --audit: forget images that were trained on, against --forget images that"
        " were not.",
        rich_help_panel=IMAGES,
    ),
]


def evaluate(
    context: typer.Context,
    checkpoint: Checkpoint,
    forget: Forget,
    retain: Retain = None,
    retain_order: RetainOrder = None,
    original: Original = None,
    retrained: Retrained = None,
    forgotten: Forgotten = None,
    audit: Audit = False,
    members: Members = None,
    require: Require = None,
    arch: Arch = None,
    state_dict: StateDict = None,
    device: Device = "auto",
    deterministic: Deterministic = False,
    batch_size: BatchSize = 256,
    label: LabelFlag = None,
    class_index: ClassIndex = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    channels: Channels = None,
    skip_bad: SkipBad = False,
    no_exif_rotation: NoExifRotation = False,
    preset: Preset = None,
    seed: Seed = 0,
    record: Record = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure what is forgotten and what is kept, beside the original and the head mask."""
    from pbu_cli.cli.evaluation_tables import evaluation_tables
    from pbu_cli.evaluation.compare import ComparisonRequest
    from pbu_cli.pipeline import evaluate as pipeline

    screen, session = open_session(as_json, quiet, verbose)
    request = pipeline.EvaluationRequest(
        ComparisonRequest(
            checkpoint,
            tuple(forget),
            retain,
            original,
            retrained,
            tuple(forgotten or ()),
            retain_order,
        ),
        input_options(context.params),
        audit,
        pipeline.AuditOptions(tuple(members or ()), seed),
        tuple(require or ()),
        record,
    )
    comparison, evaluation = pipeline.run_comparison(request, session)
    for table in evaluation_tables(evaluation):
        screen.table(table.title, table.columns, table.rows, *table.captions)
    audited = pipeline.run_audit(request, comparison, session)
    if audited:
        from pbu_cli.cli.audit_tables import audit_tables

        for table in audit_tables(audited, seed, comparison.sampled):
            screen.table(table.title, table.columns, table.rows, *table.captions)
    result = pipeline.finish_evaluation(request, comparison, evaluation, audited, session)
    for requirement in result.requirements:
        screen.line(str(requirement))
    if record is not None:
        screen.line(f"wrote {record}")
    failure = f"{checkpoint}: {'; '.join(result.unmet)}" if result.unmet else ""
    finish(screen, result.document, failure)
