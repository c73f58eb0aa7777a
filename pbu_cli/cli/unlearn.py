"""`pbu unlearn`: make the class forgotten, write the sanitized weights, show what it took."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    Mean,
    NoExifRotation,
    Output,
    Preset,
    Quiet,
    Record,
    RecordKey,
    Seed,
    Size,
    SkipBad,
    StateDict,
    Std,
    Verbose,
)
from pbu_cli.cli.flags.unlearning import (
    Again,
    Alpha,
    Anchors,
    Beta,
    Delta,
    Epsilon,
    Fast,
    FisherFile,
    Gamma,
    MaxDamage,
    NoMirror,
    Steps,
    TrainedLayers,
    Yes,
    Zeta,
)
from pbu_cli.cli.session import finish, finish_dry, open_session
from pbu_cli.errors import InvalidUsage
from pbu_cli.settings import DEFAULT, FAST

if TYPE_CHECKING:
    from pbu_cli.cli.console import Screen
    from pbu_cli.inputs.prepare import UnlearningInputs
    from pbu_cli.pipeline.unlearn import UnlearningResult


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
    again: Again = False,
    yes: Yes = False,
    force: Force = False,
    record: Record = None,
    record_key: RecordKey = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make the checkpoint forget the class and write a new checkpoint."""
    from pbu_cli.pipeline.criteria import failure, held_against_max_damage
    from pbu_cli.pipeline.history import AlreadyForgotten
    from pbu_cli.pipeline.request import UnlearningRequest
    from pbu_cli.pipeline.unlearn import prepare_unlearning, run_unlearning
    from pbu_cli.records.places import RecordFiles

    if max_damage is not None and not 0 <= max_damage <= 100:  # NaN passes some versions of click
        raise InvalidUsage(f"--max-damage {max_damage}: expected points from 0 to 100")
    screen, session = open_session(as_json, quiet, verbose)
    options = input_options(context.params)
    settings = (FAST if fast or delta == 0 else DEFAULT).adjusted(
        alpha=alpha, beta=beta, gamma=gamma, delta=delta, epsilon=epsilon, zeta=zeta,
        steps=steps, seed=seed, mirror=0.0 if no_mirror else None,
        layers=layers or None, anchors=anchors, estimator=estimator, draws=draws,
    )  # fmt: skip
    records = RecordFiles(record, record_key)
    request = UnlearningRequest(
        checkpoint, tuple(forget), output, settings, options, fisher, records, force, again, yes
    )
    try:
        prepared = prepare_unlearning(request, session)
    except AlreadyForgotten as found:
        screen.line(str(found))
        screen.document({**session.heading("unlearn"), "already_forgotten": True})
        return
    if dry_run:
        finish_dry(screen, session, "unlearn", request.place)
        return
    result = run_unlearning(prepared, session)
    _show(screen, prepared.inputs, result)
    for written in (request.place, record, record_key):
        if written is not None:
            screen.line(f"wrote {written}")
    document = result.document
    if max_damage is not None:
        requirement = held_against_max_damage(result, checkpoint, max_damage)
        screen.line(str(requirement))
        document = {**document, "requirements": [requirement.document()]}
    finish(screen, document, failure(result, max_damage))


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
