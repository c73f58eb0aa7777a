"""`pbu fisher`: measure the Fisher diagonal, write it, and show where its mass lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from pbu_cli.cli.flags.parsing import input_options
from pbu_cli.cli.flags.shared import (
    Arch,
    BatchSize,
    Channels,
    Checkpoint,
    ClassIndex,
    Deterministic,
    Device,
    Draws,
    DryRun,
    EstimatorFlag,
    Force,
    Forget,
    Json,
    LabelFlag,
    Layers,
    Mean,
    NoExifRotation,
    Output,
    Preset,
    Quiet,
    Seed,
    Size,
    SkipBad,
    StateDict,
    Std,
    Verbose,
)
from pbu_cli.cli.session import finish_dry, open_session
from pbu_cli.settings import DEFAULT, FisherSettings

if TYPE_CHECKING:
    from pbu_cli.cli.console import Screen
    from pbu_cli.pipeline.fisher import FisherResult


def fisher(
    context: typer.Context,
    checkpoint: Checkpoint,
    forget: Forget,
    output: Output = None,
    estimator: EstimatorFlag = "empirical",
    draws: Draws = 1,
    layers: Layers = DEFAULT.layers,
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
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure the Fisher diagonal of the forget images and write it to a file."""
    from pbu_cli.pipeline.fisher import FisherRequest, prepare_fisher, run_fisher
    from pbu_cli.pipeline.session import stopwatch

    screen, session = open_session(as_json, quiet, verbose)
    request = FisherRequest(
        checkpoint,
        tuple(forget),
        output,
        FisherSettings(estimator, draws, seed, layers),
        input_options(context.params),
        force,
    )
    elapsed = stopwatch()
    inputs = prepare_fisher(request, session)
    if dry_run:
        finish_dry(screen, session, "fisher", request.place)
        return
    result = run_fisher(request, inputs, session, loading=elapsed())
    _show(screen, result)
    screen.document(result.document)


def _show(screen: Screen, result: FisherResult) -> None:
    blocks: dict[str, list[str]] = {}
    for name in result.diagonal:
        blocks.setdefault(".".join(name.split(".")[:-1][:2]) or name, []).append(name)
    rows = [
        _block_row(block, [result.diagonal[name] for name in names], result.trace)
        for block, names in blocks.items()
    ]
    screen.table(
        f"Fisher diagonal, {result.estimator}, summed over {result.images} forget images",
        ("block", "parameters", "sum", "mean", "share %"),
        rows,
        f"{result.parameters:,} parameters; loaded in {result.seconds['load']:.1f} s, measured in"
        f" {result.seconds['fisher']:.1f} s",
    )
    screen.line(f"wrote {result.output}")


def _block_row(block: str, values: list[Any], total: float) -> tuple[str, ...]:
    count = sum(value.numel() for value in values)
    mass = sum(value.cpu().double().sum().item() for value in values)
    share = 100 * mass / total if total else 0.0
    return block, f"{count:,}", f"{mass:.4g}", f"{mass / count:.3g}", f"{share:.2f}"
