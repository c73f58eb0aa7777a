"""Unlearning a checkpoint, from the request to the written file and its record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pbu_cli.errors import InvalidUsage, printable
from pbu_cli.fisher.fisher_file import doubts_about, read_fisher
from pbu_cli.inputs.inferred import Inferred
from pbu_cli.inputs.labels import in_fixed_order
from pbu_cli.inputs.needs import check_needs
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.io.atomic_files import exclusive_output
from pbu_cli.io.safetensors_format import Fingerprint, Tensors
from pbu_cli.pipeline.anchors import check_anchors, inputs_made, log_forgotten_before
from pbu_cli.pipeline.fisher import (
    count_trained,
    folders,
    load_and_prepare,
    measure_fisher,
    source_of,
)
from pbu_cli.pipeline.history import check_not_forgotten
from pbu_cli.pipeline.request import UnlearningRequest, left_out_of
from pbu_cli.pipeline.sanitize import Sanitized, Unlearned, sanitize, write_sanitized
from pbu_cli.pipeline.session import Session, stopwatch
from pbu_cli.records.places import RecordFiles, check_places
from pbu_cli.records.writer import record_unlearning, summary
from pbu_cli.settings import DEFAULT, FisherSettings, InputOptions, UnlearningSettings
from pbu_cli.unlearning.loop import Progress


@dataclass(frozen=True)
class PreparedUnlearning:
    """A request that was checked, its inputs, and the Fisher diagonal of its file, if it has one.

    loading: the seconds that the preparation took.
    """

    request: UnlearningRequest
    inputs: UnlearningInputs
    fisher: Tensors
    loading: float


@dataclass(frozen=True)
class UnlearningResult:
    """What was written and what it reached.

    seconds: by phase, `load`, `fisher` and `unlearn`. document: the result as `--json` prints it.
    """

    output: Path
    settings: UnlearningSettings
    images: int
    skipped: int
    unlearned: Unlearned
    inferred: tuple[Inferred[Any], ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    document: dict[str, Any]


def unlearn_checkpoint(
    checkpoint: Path | str,
    forget: Path | str | Sequence[Path | str],
    output: Path | str | None = None,
    *,
    settings: UnlearningSettings = DEFAULT,
    options: InputOptions | None = None,
    fisher: Path | str | None = None,
    record: RecordFiles | None = None,
    force: bool = False,
) -> UnlearningResult:
    """Make a checkpoint forget the class of the images in the folders `forget`, and write the
    sanitized weights to `output`: what `pbu unlearn` does, with the errors of `PbuError`.

    fisher: a Fisher file to use instead of measuring. record: where the run record and its key go.
    """
    request = UnlearningRequest(
        Path(checkpoint),
        folders(forget),
        None if output is None else Path(output),
        settings,
        options or InputOptions(),
        None if fisher is None else Path(fisher),
        record or RecordFiles(),
        force,
    )
    session = Session()
    return run_unlearning(prepare_unlearning(request, session), session)


def prepare_unlearning(request: UnlearningRequest, session: Session) -> PreparedUnlearning:
    """Check the request, decode the images and infer what was not said; nothing is written.

    Raises AlreadyForgotten where nothing is left to do.
    """
    settings, place = request.settings.within_batch(request.options.batch_size), request.place
    forget, options = in_fixed_order(request.forget, request.options)
    request = replace(request, forget=forget, options=options)
    if request.fisher is not None and (settings.estimator != "empirical" or settings.draws != 1):
        raise InvalidUsage(
            "--estimator, --draws: --fisher already fixes the estimator; pass either --fisher or"
            " --estimator and --draws"
        )
    sources = () if request.fisher is None else (request.fisher,)
    if os.access(request.checkpoint, os.R_OK):  # otherwise reading it raises the better error
        request.check_output(sources=sources)
        taken = (request.checkpoint, *sources)
        check_places(request.record, place, force=request.force, taken=taken)
    elapsed = stopwatch()
    inputs = load_and_prepare(
        request.checkpoint, request.forget, request.options, settings.layers, session, request.rules
    )
    if not request.again:
        check_not_forgotten(inputs)
    count = count_trained(inputs)
    text = f"{count:,} parameters in {len(inputs.trained)} tensors"
    session.log.add(Inferred("trains", count, f"--layers {settings.layers}", text))
    needed = sum(tensor.nbytes for tensor in inputs.loaded.checkpoint.tensors.values())
    request.check_output(sources=sources, size=needed)
    if request.writes_folder:
        session.log.warn(left_out_of(request.checkpoint))
    if settings.anchors:
        session.log.warn(check_anchors(inputs, settings))
        log_forgotten_before(inputs, session.log)
    _check_needs(inputs, settings, session)
    fisher: Tensors = {}
    if request.fisher is not None:
        shapes = {name: inputs.loaded.checkpoint.shapes[name] for name in inputs.trained}
        fisher, estimator, draws = read_fisher(
            request.fisher, source_of(inputs), shapes, inputs.loaded.device
        )
        settings = replace(settings, estimator=estimator, draws=draws)
        session.log.warn(doubts_about(fisher))
        session.log.add(Inferred("Fisher", estimator, str(request.fisher)))
    return PreparedUnlearning(replace(request, settings=settings), inputs, fisher, elapsed())


def _check_needs(inputs: UnlearningInputs, settings: UnlearningSettings, session: Session) -> None:
    """Say what the run needs, if it takes long; see `check_needs` for the error."""
    made = inputs_made(inputs, settings) if settings.anchors else 0
    found = check_needs(inputs, settings, made=made)
    if found is not None:
        session.log.add(found)


def run_unlearning(prepared: PreparedUnlearning, session: Session) -> UnlearningResult:
    """Measure the Fisher diagonal, unlearn, write the output and its record."""
    request, inputs, settings = prepared.request, prepared.inputs, prepared.request.settings
    place, images = request.place, len(inputs.images.pixels)
    if place.is_symlink():
        target = printable(os.path.realpath(place))
        session.log.warn([f"{place}: a link; it is replaced, and {target} stays as it is"])
    elapsed = stopwatch()
    with exclusive_output(place, force=request.force):
        fisher = prepared.fisher
        if not fisher and settings.weights.beta > 0:
            measured = FisherSettings(
                settings.estimator, settings.draws, settings.schedule.seed, settings.layers
            )
            with session.progress("Fisher", images) as progress:
                fisher = measure_fisher(inputs, measured, done=lambda n: progress(n, ""))
        measuring = elapsed()
        sanitized = _sanitize(prepared, fisher, session)
        unlearned = sanitized.unlearned
        seconds = {"load": prepared.loading, "fisher": measuring, "unlearn": elapsed()}
        document = {
            **session.heading("unlearn"),
            "output": str(place),
            "settings": request.settings_entry(),
            "images": images,
            "skipped": len(inputs.images.bad),
            "result": unlearned.document(),
            "seconds": seconds,
        }
        write_sanitized(
            inputs, place, sanitized, lambda written: _record(prepared, written, document)
        )
    return UnlearningResult(
        output=place,
        settings=settings,
        images=images,
        skipped=len(inputs.images.bad),
        unlearned=unlearned,
        inferred=tuple(session.log.inferred),
        warnings=tuple(session.log.warnings),
        seconds=seconds,
        document=document,
    )


def _sanitize(prepared: PreparedUnlearning, fisher: Tensors, session: Session) -> Sanitized:
    """`sanitize` with its progress shown."""
    inputs, settings = prepared.inputs, prepared.request.settings
    total = inputs_made(inputs, settings) if settings.anchors else 0
    with (
        session.progress("anchors", total) as making,
        session.progress("unlearning", settings.schedule.steps) as stepping,
    ):

        def show(progress: Progress) -> None:
            check = progress.check
            stepping(check.step, f"recognised {check.recognised:5.1f} %  drift {check.drift:.3f}")

        return sanitize(
            inputs,
            fisher,
            settings,
            run=summary(inputs, prepared.request.settings_entry()),
            making=lambda count: making(count, ""),
            seen=show,
        )


def _record(prepared: PreparedUnlearning, written: Fingerprint, document: dict[str, Any]) -> None:
    """Write the record, if one is asked for. The output appears only after it."""
    request = prepared.request
    if request.record.record is not None:
        output = (request.place, written)
        record_unlearning(
            request.record, prepared.inputs, output,
            fisher=request.fisher, options=request.options, document=document,
        )  # fmt: skip
