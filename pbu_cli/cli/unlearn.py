"""`pbu unlearn`: make the class forgotten, write the sanitized weights, say what it took."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pbu_cli.cli.options import (
    LAYERS,
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
    Mean,
    Output,
    Quiet,
    Record,
    RecordKey,
    Seed,
    Size,
    SkipBad,
    Std,
    input_options,
)
from pbu_cli.cli.session import beside, finish, finish_dry, heading, open_session, prepare_inputs
from pbu_cli.errors import InvalidUsage, PbuError, printable
from pbu_cli.settings import DEEP, FAST, FORGOTTEN, LEAST_ANCHORS, SAFETENSORS

if TYPE_CHECKING:
    from pbu_cli.cli.console import Screen
    from pbu_cli.inputs.prepare import UnlearningInputs
    from pbu_cli.pipeline.unlearn import Unlearned


def _shown(weight: str) -> str:
    deep, fast = (getattr(preset.weights, weight) for preset in (DEEP, FAST))
    return f"{deep:g}" if deep == fast else f"{deep:g}; --fast: {fast:g}"


def unlearn(
    checkpoint: Checkpoint,
    forget: Forget,
    output: Output = None,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Change the answers alone, without anchors: seconds."),
    ] = False,
    alpha: Annotated[
        float | None,
        typer.Option(min=0, help="Weight of forgetting.", show_default=_shown("alpha")),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(
            min=0, help="Weight of the Fisher-weighted distance.", show_default=_shown("beta")
        ),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option(min=0, help="Weight of the squared distance.", show_default=_shown("gamma")),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Weight of stable answers; 0 is the paper's objective, without anchors.",
            show_default=_shown("delta"),
        ),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Weight of stable answers and features on the anchors.",
            show_default=_shown("epsilon"),
        ),
    ] = None,
    zeta: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Weight against a line that tells forget features from the anchors'.",
            show_default=_shown("zeta"),
        ),
    ] = None,
    anchors: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=100_000,
            help="How many inputs to make for the classes that stay.",
            show_default=f"{DEEP.anchors}; --fast: none",
        ),
    ] = None,
    no_mirror: Annotated[
        bool,
        typer.Option(
            "--no-mirror",
            help="Leave mirror images out, which join where the network takes them for the class.",
        ),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps at most.",
            show_default=f"{DEEP.schedule.steps}; --fast: {FAST.schedule.steps}",
        ),
    ] = None,
    max_damage: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            metavar="POINTS",
            help="Exit with 5 where A_Dr is estimated to have lost more.",
            show_default="no limit",
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar=LAYERS,
            help="Which parameters train: the last stage, it and the head, the head, all, or a"
            " pattern in their names. With anchors the head's row of the class moves too.",
            show_default=f"{DEEP.layers}; --fast: {FAST.layers}",
        ),
    ] = None,
    fisher: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Fisher file of `pbu fisher`.", show_default="measured now"
        ),
    ] = None,
    estimator: EstimatorFlag = "empirical",
    draws: Draws = 1,
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
    record: Record = None,
    record_key: RecordKey = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make the checkpoint forget the class and write the sanitized weights."""
    from pbu_cli.cli.session import stopwatch
    from pbu_cli.fisher.fisher_file import read_fisher
    from pbu_cli.io.atomic_files import check_output, exclusive_output
    from pbu_cli.pipeline.anchors import check_anchors, inputs_made
    from pbu_cli.pipeline.fisher import measure_fisher
    from pbu_cli.pipeline.unlearn import unlearn_and_write
    from pbu_cli.records.writer import check_places, record_unlearning, summary

    screen, log = open_session(as_json, quiet)
    options = input_options(
        arch, label, mean, std, size, channels, device, batch_size, skip_bad, deterministic
    )
    preset = FAST if fast or delta == 0 else DEEP
    asked = {"alpha": alpha, "beta": beta, "gamma": gamma, "delta": delta,
             "epsilon": epsilon, "zeta": zeta}  # fmt: skip
    weights = replace(preset.weights, **{k: v for k, v in asked.items() if v is not None})
    schedule = replace(
        preset.schedule,
        steps=steps or preset.schedule.steps,
        seed=seed,
        mirror=0.0 if no_mirror else preset.schedule.mirror,
    )
    layers = layers or preset.layers
    anchors = preset.anchors if anchors is None else anchors
    if 0 < anchors < LEAST_ANCHORS:
        raise InvalidUsage(
            f"--anchors {anchors}: expected 0 or at least {LEAST_ANCHORS}, whose statistics can be"
            " compared; 0 needs --epsilon 0 --zeta 0, or --fast"
        )
    most = batch_size // 2 if anchors else batch_size  # beside as many anchors
    schedule = replace(schedule, batch_size=max(1, min(schedule.batch_size, most)))
    if bool(anchors) != bool(weights.epsilon or weights.zeta):
        raise InvalidUsage(
            f"--anchors {anchors} with --epsilon {weights.epsilon:g} --zeta {weights.zeta:g}: needs"
            " both or neither: give anchors and a weight, or --fast alone for neither"
        )
    if fisher is not None and (estimator != "empirical" or draws != 1):
        raise InvalidUsage("--estimator, --draws: how to measure what --fisher has; leave one away")
    place = output or beside(checkpoint, ".unlearned.safetensors")
    inputs = (fisher,) if fisher else ()
    if os.access(checkpoint, os.R_OK):  # else that is what to say
        check_output(place, force=force, sources=inputs, suffix=SAFETENSORS)
        check_places(record, record_key, place, force=force, taken=(checkpoint, *inputs))
    lap = stopwatch()
    prepared = prepare_inputs(checkpoint, forget, options, layers, log, screen)
    shapes = prepared.loaded.checkpoint.shapes
    count = sum(prod(shapes[name]) for name in prepared.trained)
    log("trains", f"{count:,} parameters in {len(prepared.trained)} tensors", f"--layers {layers}")
    tensors = prepared.loaded.checkpoint.tensors.values()
    needed = sum(tensor.nbytes for tensor in tensors)
    check_output(place, force=force, sources=inputs, size=needed, suffix=SAFETENSORS)
    if anchors:
        check_anchors(prepared, anchors, schedule)
        said = prepared.loaded.description
        if before := sorted({*said.forgotten} - {*prepared.image_labels.tolist()}):
            names = ", ".join(map(prepared.loaded.class_name, before))
            log("forgotten before", names, f"{said.sources['forgotten']}: no anchors for them")
    diagonal: dict[str, Any] = {}
    if fisher is not None:
        diagonal, estimator, draws = read_fisher(fisher, prepared, prepared.trained)
        log("Fisher", estimator, str(fisher))
    if dry_run:
        finish_dry(screen, log, "unlearn", place)
        return
    if place.is_symlink():
        target = printable(os.path.realpath(place))
        log.warn([f"{place}: a link; it is replaced, and {target} stays as it is"])
    loading = lap()
    settings = {
        "weights": vars(weights),
        "schedule": vars(schedule),
        "anchors": anchors,
        "layers": layers,
        "estimator": estimator,
        "draws": draws,
        "wanted": vars(options),
    }
    with exclusive_output(place, force=force):
        if fisher is None and weights.beta > 0:
            with screen.progress("Fisher", len(prepared.images.pixels)) as bar:
                diagonal = measure_fisher(
                    prepared, estimator, draws=draws, seed=seed, done=lambda n: bar(n, "")
                )
        measuring = lap()
        with (
            screen.progress("anchors", inputs_made(prepared, anchors, schedule)) as making,
            screen.progress("unlearning", schedule.steps) as bar,
        ):
            done = unlearn_and_write(
                prepared,
                diagonal,
                place,
                weights=weights,
                schedule=schedule,
                anchors=anchors,
                making=lambda n: making(n, ""),
                run=summary(prepared, settings),
                seen=lambda p: bar(
                    p.seen.step, f"recognised {p.seen.recognised:5.1f} %  drift {p.seen.drift:.3f}"
                ),
            )
        unlearning = lap()
        document = {
            **heading("unlearn", log),
            "output": str(place),
            "settings": settings,
            "images": len(prepared.images.pixels),
            "skipped": len(prepared.images.bad),
            "result": {**asdict(done), "forgotten": done.forgotten, "damage": vars(done.damage)},
            "seconds": {"load": loading, "fisher": measuring, "unlearn": unlearning},
        }
        if record is not None:
            try:
                record_unlearning(
                    record, record_key, prepared, place, fisher=fisher, arch=arch, document=document
                )
            except PbuError as error:
                raise PbuError(f"{place}: written, but its record was not: {error}") from None
    _show(screen, prepared, done, document["seconds"])
    for written in (place, record, record_key):
        if written is not None:
            screen.line(f"wrote {written}")
    finish(screen, document, _fault(place, done, max_damage))


def _show(
    screen: Screen, prepared: UnlearningInputs, done: Unlearned, seconds: Mapping[str, float]
) -> None:
    name = prepared.loaded.class_name
    mirrored = []
    if done.mirrored is not None:
        joined = "joined" if done.mirrored.joined else "left out"
        share = f"{100 * done.mirrored.recognised:.0f} recognised for 100 images that are"
        mirrored = [f"mirror images {joined}: {share}"]
    classes = ", ".join(name(c) for c in sorted(set(prepared.image_labels.tolist())))
    screen.table(
        f"Forgot class {classes}, measured on the {len(prepared.images.pixels)} forget images and the"
        " file as written",
        ("", "before", "after"),
        (
            (
                "A_Df, accuracy on the forget images (%)",
                f"{done.a_df_before:.2f}",
                f"{done.a_df:.2f}",
            ),
            ("drift of the other classes' answers (nats)", "0.000", f"{done.drift:.3f}"),
            ("loss of A_Dr, estimated from such drifts (points)", "", str(done.damage)),
            ("distance from theta* (relative)", "0.0000", f"{done.moved:.4f}"),
        ),
        f"stopped: {done.reason}",
        *mirrored,
        "A_Dr itself is unknown without retained images: pbu evaluate --retain measures it",
        f"loaded in {seconds['load']:.1f} s, Fisher {seconds['fisher']:.1f} s, unlearning and"
        f" writing {seconds['unlearn']:.1f} s",
    )


def _fault(place: Path, done: Unlearned, max_damage: float | None) -> str:
    """What the run was to reach and did not, in one line; empty where it did."""
    if not done.forgotten:
        return (
            f"{place}: written, but {done.a_df:.2f} % of the forget images are still recognised"
            f" (at most {FORGOTTEN} expected) after {done.steps} steps; {done.reason}"
        )
    if max_damage is not None and done.damage.estimate > max_damage:
        return (
            f"{place}: written, but A_Dr is estimated to have lost {done.damage} points (at most"
            f" {max_damage:g} expected); {done.reason}: lower --alpha, or measure it with pbu"
            " evaluate --retain"
        )
    return ""
