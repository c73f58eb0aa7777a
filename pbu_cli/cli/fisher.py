"""`pbu fisher`: measure the Fisher diagonal, write it, say where it lies."""

from __future__ import annotations

import os
from math import prod
from typing import Any

from pbu_cli.cli.options import (
    Arch,
    BatchSize,
    Channels,
    Checkpoint,
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
    Output,
    Quiet,
    Seed,
    Size,
    SkipBad,
    Std,
    input_options,
)
from pbu_cli.cli.session import beside, finish_dry, heading, open_session, prepare_inputs
from pbu_cli.settings import SAFETENSORS


def fisher(
    checkpoint: Checkpoint,
    forget: Forget,
    output: Output = None,
    estimator: EstimatorFlag = "empirical",
    draws: Draws = 1,
    layers: Layers = "all",
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
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the Fisher diagonal of the forget images and write it to a file."""
    from pbu_cli.cli.session import stopwatch
    from pbu_cli.fisher.fisher_file import write_fisher
    from pbu_cli.io.atomic_files import check_output, exclusive_output
    from pbu_cli.pipeline.fisher import measure_fisher

    screen, log = open_session(as_json, quiet)
    options = input_options(
        arch, label, mean, std, size, channels, device, batch_size, skip_bad, deterministic
    )
    place = output or beside(checkpoint, ".fisher.safetensors")
    if os.access(checkpoint, os.R_OK):  # else that is what to say
        check_output(place, force=force, sources=(checkpoint,), suffix=SAFETENSORS)
    lap = stopwatch()
    prepared = prepare_inputs(checkpoint, forget, options, layers, log, screen)
    shapes = prepared.loaded.checkpoint.shapes
    count = sum(prod(shapes[name]) for name in prepared.trained)
    check_output(place, force=force, sources=(checkpoint,), size=4 * count, suffix=SAFETENSORS)
    if dry_run:
        finish_dry(screen, log, "fisher", place)
        return
    loading = lap()
    images = len(prepared.images.pixels)
    with exclusive_output(place, force=force):
        with screen.progress("Fisher", images) as bar:
            diagonal = measure_fisher(
                prepared, estimator, draws=draws, seed=seed, done=lambda n: bar(n, "")
            )
        measuring = lap()
        write_fisher(place, prepared, diagonal, estimator, draws, seed)
    total = sum(value.cpu().double().sum().item() for value in diagonal.values())
    blocks: dict[str, list[str]] = {}
    for name in prepared.trained:
        blocks.setdefault(".".join(name.split(".")[:-1][:2]) or name, []).append(name)
    rows = [
        _block_row(block, [diagonal[n] for n in inner], total) for block, inner in blocks.items()
    ]
    screen.table(
        f"Fisher diagonal, {estimator}, summed over {images} forget images",
        ("block", "parameters", "sum", "mean", "share %"),
        rows,
        f"{count:,} parameters; loaded in {loading:.1f} s, measured in {measuring:.1f} s",
    )
    screen.line(f"wrote {place}")
    screen.document(
        {
            **heading("fisher", log),
            "output": str(place),
            "estimator": estimator,
            "images": images,
            "skipped": len(prepared.images.bad),
            "parameters": count,
            "trace": total,
            "seconds": {"load": loading, "fisher": measuring},
        }
    )


def _block_row(block: str, values: list[Any], total: float) -> tuple[str, ...]:
    count = sum(value.numel() for value in values)
    mass = sum(value.cpu().double().sum().item() for value in values)
    share = 100 * mass / total if total else 0.0
    return block, f"{count:,}", f"{mass:.4g}", f"{mass / count:.3g}", f"{share:.2f}"
