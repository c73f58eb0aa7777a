"""Unlearning a checkpoint, from the request to the written file and its record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pbu_cli.errors import InvalidUsage, PbuError, printable
from pbu_cli.fisher.fisher_file import read_fisher
from pbu_cli.inputs.inferred import Inferred
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.io.atomic_files import check_output, exclusive_output
from pbu_cli.io.safetensors_format import Tensors
from pbu_cli.pipeline.anchors import check_anchors, inputs_made
from pbu_cli.pipeline.fisher import (
    count_trained,
    default_output,
    folders,
    load_and_prepare,
    measure_fisher,
    source_of,
)
from pbu_cli.pipeline.sanitize import Unlearned, unlearn_and_write
from pbu_cli.pipeline.session import Session, stopwatch
from pbu_cli.records.writer import RecordFiles, check_places, record_unlearning, summary
from pbu_cli.settings import DEFAULT, SAFETENSORS, FisherSettings, InputOptions, UnlearningSettings
from pbu_cli.unlearning.loop import Progress


@dataclass(frozen=True)
class UnlearningRequest:
    """What `pbu unlearn` is asked for. output: by default a file beside the checkpoint. fisher: a
    Fisher file to use instead of measuring."""

    checkpoint: Path
    forget: tuple[str, ...]
    output: Path | None = None
    settings: UnlearningSettings = DEFAULT
    options: InputOptions = field(default_factory=InputOptions)
    fisher: Path | None = None
    record: RecordFiles = field(default_factory=RecordFiles)
    force: bool = False

    @property
    def place(self) -> Path:
        return self.output or default_output(self.checkpoint, ".unlearned.safetensors")

    def settings_entry(self) -> dict[str, Any]:
        """The settings as records, metadata and `--json` have them; their names there stay."""
        settings = self.settings
        return {
            "weights": vars(settings.weights),
            "schedule": vars(settings.schedule),
            "anchors": settings.anchors,
            "layers": settings.layers,
            "estimator": settings.estimator,
            "draws": settings.draws,
            "wanted": vars(self.options),
        }


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
    """Check the request, decode the images and infer what was not said; nothing is written."""
    settings, place = request.settings.within_batch(request.options.batch_size), request.place
    if request.fisher is not None and (settings.estimator != "empirical" or settings.draws != 1):
        raise InvalidUsage(
            "--estimator, --draws: --fisher already fixes the estimator; pass either --fisher or"
            " --estimator and --draws"
        )
    sources = () if request.fisher is None else (request.fisher,)
    if os.access(request.checkpoint, os.R_OK):  # otherwise reading it raises the better error
        check_output(place, force=request.force, sources=sources, suffix=SAFETENSORS)
        taken = (request.checkpoint, *sources)
        check_places(request.record, place, force=request.force, taken=taken)
    elapsed = stopwatch()
    inputs = load_and_prepare(
        request.checkpoint, request.forget, request.options, settings.layers, session
    )
    count = count_trained(inputs)
    text = f"{count:,} parameters in {len(inputs.trained)} tensors"
    session.log.add(Inferred("trains", count, f"--layers {settings.layers}", text))
    needed = sum(tensor.nbytes for tensor in inputs.loaded.checkpoint.tensors.values())
    check_output(place, force=request.force, sources=sources, size=needed, suffix=SAFETENSORS)
    if settings.anchors:
        check_anchors(inputs, settings)
        _log_forgotten_before(inputs, session)
    fisher: Tensors = {}
    if request.fisher is not None:
        shapes = {name: inputs.loaded.checkpoint.shapes[name] for name in inputs.trained}
        fisher, estimator, draws = read_fisher(
            request.fisher, source_of(inputs), shapes, inputs.loaded.device
        )
        settings = replace(settings, estimator=estimator, draws=draws)
        session.log.add(Inferred("Fisher", estimator, str(request.fisher)))
    return PreparedUnlearning(replace(request, settings=settings), inputs, fisher, elapsed())


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
        unlearned = _unlearn(prepared, fisher, session)
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
        if request.record.record is not None:
            _record(request, inputs, document)
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


def _unlearn(prepared: PreparedUnlearning, fisher: Tensors, session: Session) -> Unlearned:
    """`unlearn_and_write` with its progress shown."""
    request, inputs, settings = prepared.request, prepared.inputs, prepared.request.settings
    total = inputs_made(inputs, settings) if settings.anchors else 0
    with (
        session.progress("anchors", total) as making,
        session.progress("unlearning", settings.schedule.steps) as stepping,
    ):

        def show(progress: Progress) -> None:
            check = progress.check
            stepping(check.step, f"recognised {check.recognised:5.1f} %  drift {check.drift:.3f}")

        return unlearn_and_write(
            inputs,
            fisher,
            request.place,
            settings,
            run=summary(inputs, request.settings_entry()),
            making=lambda count: making(count, ""),
            seen=show,
        )


def _record(request: UnlearningRequest, inputs: UnlearningInputs, document: dict[str, Any]) -> None:
    try:
        record_unlearning(
            request.record,
            inputs,
            request.place,
            fisher=request.fisher,
            arch=request.options.arch,
            document=document,
        )
    except PbuError as error:
        raise PbuError(f"{request.place}: written, but its record was not: {error}") from None


def _log_forgotten_before(inputs: UnlearningInputs, session: Session) -> None:
    """Log the classes that earlier runs have forgotten: no anchors are made of them."""
    loaded = inputs.loaded
    before = sorted({*loaded.description.forgotten} - {*inputs.image_labels.tolist()})
    if before:
        names = ", ".join(map(loaded.class_name, before))
        source = f"{loaded.description.sources['forgotten']}: no anchors for them"
        session.log.add(Inferred("forgotten before", before, source, names))
