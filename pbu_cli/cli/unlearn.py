"""`pbu unlearn`: make the class forgotten, write the sanitized weights, show what it took."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    Verbose,
    input_options,
)
from pbu_cli.cli.session import finish, finish_dry, open_session
from pbu_cli.settings import DEFAULT, FAST, FORGOTTEN

if TYPE_CHECKING:
    from pbu_cli.cli.console import Screen
    from pbu_cli.inputs.prepare import UnlearningInputs
    from pbu_cli.pipeline.unlearn import UnlearningResult


def _weight(name: str, text: str) -> typer.models.OptionInfo:
    """The flag of a weight, with its defaults shown."""
    default, fast = (getattr(settings.weights, name) for settings in (DEFAULT, FAST))
    shown = f"{default:g}" if default == fast else f"{default:g}; --fast: {fast:g}"
    found: typer.models.OptionInfo = typer.Option(min=0, help=text, show_default=shown)
    return found


Fast = Annotated[
    bool,
    typer.Option(
        "--fast", help="Change the logits and hardly the features, without anchors: seconds."
    ),
]
Alpha = Annotated[float | None, _weight("alpha", "Weight of forgetting.")]
Beta = Annotated[float | None, _weight("beta", "Weight of the Fisher-weighted distance.")]
Gamma = Annotated[float | None, _weight("gamma", "Weight of the squared distance.")]
Delta = Annotated[
    float | None,
    _weight("delta", "Weight of stable logits; 0 is the paper's objective, without anchors."),
]
Epsilon = Annotated[
    float | None,
    _weight("epsilon", "Weight of stable logits and features on the anchors."),
]
Zeta = Annotated[
    float | None,
    _weight(
        "zeta",
        "Weight of the loss that keeps a linear probe from separating forget features from"
        " anchor features.",
    ),
]
Anchors = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=100_000,
        help="How many inputs to synthesise for the classes that are kept.",
        show_default=f"{DEFAULT.anchors}; --fast: none",
    ),
]
NoMirror = Annotated[
    bool,
    typer.Option(
        "--no-mirror",
        help="Never use mirrored images. By default they join the forget images where the network"
        " recognises the class in them.",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Take at most this many steps.",
        show_default=f"{DEFAULT.schedule.steps}; --fast: {FAST.schedule.steps}",
    ),
]
MaxDamage = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=100,
        metavar="POINTS",
        help="Exit with 5 where A_Dr is estimated to have lost more.",
        show_default="no limit",
    ),
]
TrainedLayers = Annotated[
    str | None,
    typer.Option(
        metavar=LAYERS,
        help="Which parameters train: the last stage, the last stage and the head, the head, all,"
        " or a pattern in their names. With anchors the head's row of the class moves too.",
        show_default=f"{DEFAULT.layers}; --fast: {FAST.layers}",
    ),
]
FisherFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Fisher file of `pbu fisher`.", show_default="measured now"),
]


def unlearn(
    context: typer.Context,
    checkpoint: Checkpoint,
    forget: Forget,
    output: Output = None,
    fast: Fast = False,
    alpha: Alpha = None,
    beta: Beta = None,
    gamma: Gamma = None,
    delta: Delta = None,
    epsilon: Epsilon = None,
    zeta: Zeta = None,
    anchors: Anchors = None,
    no_mirror: NoMirror = False,
    steps: Steps = None,
    max_damage: MaxDamage = None,
    layers: TrainedLayers = None,
    fisher: FisherFile = None,
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
    verbose: Verbose = False,
) -> None:
    """Make the checkpoint forget the class and write a new checkpoint."""
    from pbu_cli.pipeline.unlearn import UnlearningRequest, prepare_unlearning, run_unlearning
    from pbu_cli.records.writer import RecordFiles

    screen, session = open_session(as_json, quiet, verbose)
    options = input_options(context.params)
    settings = (FAST if fast or delta == 0 else DEFAULT).adjusted(
        alpha=alpha, beta=beta, gamma=gamma, delta=delta, epsilon=epsilon, zeta=zeta,
        steps=steps, seed=seed, mirror=0.0 if no_mirror else None,
        layers=layers or None, anchors=anchors, estimator=estimator, draws=draws,
    )  # fmt: skip
    request = UnlearningRequest(
        checkpoint,
        tuple(forget),
        output,
        settings,
        options,
        fisher,
        RecordFiles(record, record_key),
        force,
    )
    prepared = prepare_unlearning(request, session)
    if dry_run:
        finish_dry(screen, session, "unlearn", request.place)
        return
    result = run_unlearning(prepared, session)
    _show(screen, prepared.inputs, result)
    for written in (request.place, record, record_key):
        if written is not None:
            screen.line(f"wrote {written}")
    finish(screen, result.document, _failure(result, max_damage))


def _show(screen: Screen, inputs: UnlearningInputs, result: UnlearningResult) -> None:
    """The table of what the run reached."""
    done, seconds, name = result.unlearned, result.seconds, inputs.loaded.class_name
    classes = ", ".join(name(c) for c in sorted(set(inputs.image_labels.tolist())))
    captions = [f"stopped: {done.reason}"]
    if done.mirrored is not None:
        joined = "joined" if done.mirrored.joined else "left out"
        share = f"{100 * done.mirrored.recognised:.0f} mirrored ones for every 100 images"
        captions.append(f"mirror images {joined}: the network recognises {share}")
    screen.table(
        f"Forgot class {classes}, measured on the {result.images} forget images and the file as"
        " written",
        ("", "before", "after"),
        (
            (
                "A_Df, accuracy on the forget images (%)",
                f"{done.a_df_before:.2f}",
                f"{done.a_df:.2f}",
            ),
            (
                "drift of the predictions among the other classes (nats)",
                "0.000",
                f"{done.drift:.3f}",
            ),
            ("loss of A_Dr, estimated from such drifts (points)", "", str(done.accuracy_loss)),
            ("distance from the original weights (relative)", "0.0000", f"{done.moved:.4f}"),
        ),
        *captions,
        "A_Dr itself is unknown without retained images: pbu evaluate --retain measures it",
        f"loaded in {seconds['load']:.1f} s, Fisher {seconds['fisher']:.1f} s, unlearning and"
        f" writing {seconds['unlearn']:.1f} s",
    )


def _failure(result: UnlearningResult, max_damage: float | None) -> str:
    """The criterion that the run did not meet, in one line; empty where all are met."""
    done = result.unlearned
    if not done.forgotten:
        return (
            f"{result.output}: written, but {done.a_df:.2f} % of the forget images are still"
            f" recognised (at most {FORGOTTEN} expected) after {done.steps} steps; {done.reason}"
        )
    if max_damage is not None and done.accuracy_loss.estimate > max_damage:
        return (
            f"{result.output}: written, but A_Dr is estimated to have lost {done.accuracy_loss}"
            f" points (at most {max_damage:g} expected); {done.reason}: lower --alpha, or measure"
            " it with pbu evaluate --retain"
        )
    return ""
