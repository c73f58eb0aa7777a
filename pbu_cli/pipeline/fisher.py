"""The Fisher diagonal of a checkpoint: measured on its forget images, written to a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from pbu_cli.data.label_inference import LabelRules
from pbu_cli.fisher.diagonal import fisher_diagonal
from pbu_cli.fisher.fisher_file import FisherSource, write_fisher
from pbu_cli.inputs.inferred import Inferred
from pbu_cli.inputs.labels import in_fixed_order
from pbu_cli.inputs.loaded_model import load_model
from pbu_cli.inputs.prepare import UnlearningInputs, prepare_inputs
from pbu_cli.io.atomic_files import check_output, exclusive_output
from pbu_cli.io.safetensors_format import Tensors
from pbu_cli.models.frozen_backbone import from_features
from pbu_cli.models.kernels.channels_last import contiguous
from pbu_cli.pipeline.fisher_leaks import leak_warnings
from pbu_cli.pipeline.session import Session, stopwatch
from pbu_cli.settings import SAFETENSORS, FisherSettings, InputOptions

# The totals are read and written once a batch, so a batch of small inputs takes more images: it
# takes FISHER_BATCH images, or as many as hold FISHER_INPUTS numbers where those are more.
FISHER_BATCH = 64
FISHER_INPUTS = 1 << 18

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FisherRequest:
    """What `pbu fisher` is asked for. output: by default a file beside the checkpoint."""

    checkpoint: Path
    forget: tuple[str, ...]
    output: Path | None = None
    settings: FisherSettings = field(default_factory=FisherSettings)
    options: InputOptions = field(default_factory=InputOptions)
    force: bool = False

    @property
    def place(self) -> Path:
        return self.output or default_output(self.checkpoint, ".fisher.safetensors")


@dataclass(frozen=True)
class FisherResult:
    """A measured Fisher diagonal: sums over the images, by parameter, and the file that holds it.

    trace: the sum of the diagonal. seconds: by phase, `load` and `fisher`. document: the result as
    `--json` prints it.
    """

    output: Path
    diagonal: Tensors
    estimator: str
    images: int
    skipped: int
    parameters: int
    trace: float
    inferred: tuple[Inferred[Any], ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    document: dict[str, Any]


def fisher_of_checkpoint(
    checkpoint: Path | str,
    forget: Path | str | Sequence[Path | str],
    output: Path | str | None = None,
    *,
    settings: FisherSettings | None = None,
    options: InputOptions | None = None,
    force: bool = False,
) -> FisherResult:
    """Measure the Fisher diagonal of a checkpoint on the images in the folders `forget`, and write
    it to `output`: what `pbu fisher` does, with the errors of `PbuError`.
    """
    request = FisherRequest(
        Path(checkpoint),
        folders(forget),
        None if output is None else Path(output),
        settings or FisherSettings(),
        options or InputOptions(),
        force,
    )
    session = Session()
    elapsed = stopwatch()
    inputs = prepare_fisher(request, session)
    return run_fisher(request, inputs, session, loading=elapsed())


def prepare_fisher(request: FisherRequest, session: Session) -> UnlearningInputs:
    """Check where the output goes and prepare the inputs; nothing is written."""
    sources = (request.checkpoint,)
    if os.access(request.checkpoint, os.R_OK):  # otherwise reading it raises the better error
        check_output(request.place, force=request.force, sources=sources, suffix=SAFETENSORS)
    forget, options = in_fixed_order(request.forget, request.options)
    inputs = load_and_prepare(request.checkpoint, forget, options, request.settings.layers, session)
    session.log.warn(leak_warnings(inputs))
    needed = 4 * count_trained(inputs)
    check_output(
        request.place, force=request.force, sources=sources, size=needed, suffix=SAFETENSORS
    )
    return inputs


def run_fisher(
    request: FisherRequest, inputs: UnlearningInputs, session: Session, *, loading: float
) -> FisherResult:
    """Measure and write. loading: the seconds that the preparation took."""
    settings, images = request.settings, len(inputs.images.pixels)
    elapsed = stopwatch()
    with exclusive_output(request.place, force=request.force):
        with session.progress("Fisher", images) as progress:
            diagonal = measure_fisher(inputs, settings, done=lambda n: progress(n, ""))
        measuring = elapsed()
        write_fisher(
            request.place,
            diagonal,
            source_of(inputs),
            estimator=settings.estimator,
            draws=settings.draws,
            seed=settings.seed,
        )
    facts: dict[str, Any] = {
        "output": request.place,
        "estimator": settings.estimator,
        "images": images,
        "skipped": len(inputs.images.bad),
        "parameters": count_trained(inputs),
        "trace": sum(value.cpu().double().sum().item() for value in diagonal.values()),
        "seconds": {"load": loading, "fisher": measuring},
    }
    return FisherResult(
        **facts,
        diagonal=diagonal,
        inferred=tuple(session.log.inferred),
        warnings=tuple(session.log.warnings),
        document={**session.heading("fisher"), **facts, "output": str(request.place)},
    )


def measure_fisher(
    inputs: UnlearningInputs,
    settings: FisherSettings,
    *,
    done: Callable[[int], None] = lambda count: None,
) -> Tensors:
    """The Fisher diagonal of the parameters that train, summed over all forget images."""
    module = inputs.loaded.network.module
    first = (inputs.images.pixels if inputs.features is None else inputs.features)[0]
    size = min(max(FISHER_BATCH, FISHER_INPUTS // first.numel()), inputs.batch_size)

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        for number, (x, labels) in enumerate(inputs.batches(size)):
            yield x.contiguous(), labels
            done(min((number + 1) * size, len(inputs.image_labels)))

    logger.debug("Fisher pass: %s, batches of %d, %s", settings, size, tuple(first.shape))
    with contiguous(module), from_features(module, inputs.split_point):
        return fisher_diagonal(
            module,
            counted(),
            estimator=settings.estimator,
            draws=settings.draws,
            seed=settings.seed,
            parameters=inputs.trained,
        )


def load_and_prepare(
    checkpoint: Path,
    forget: Sequence[str],
    options: InputOptions,
    layers: str,
    session: Session,
    rules: LabelRules = LabelRules(),  # noqa: B008 (frozen)
) -> UnlearningInputs:
    """Load a checkpoint, decode its forget images and resolve what the user did not say."""
    loaded = load_model(checkpoint, options, session.log)
    with session.progress("decoding", None) as progress:
        return prepare_inputs(
            loaded,
            forget,
            options,
            session.log,
            layers=layers,
            stdin=session.stdin,
            rules=rules,
            progress=lambda count: progress(count, "images"),
        )


def source_of(inputs: UnlearningInputs) -> FisherSource:
    """What a Fisher file is bound to."""
    return FisherSource(
        inputs.loaded.checkpoint.fingerprint.tensors,
        inputs.preprocessing,
        inputs.images.pixels,
        inputs.image_labels,
    )


def count_trained(inputs: UnlearningInputs) -> int:
    """How many numbers train."""
    shapes = inputs.loaded.checkpoint.shapes
    return sum(prod(shapes[name]) for name in inputs.trained)


def folders(forget: Path | str | Sequence[Path | str]) -> tuple[str, ...]:
    """One folder or several, as texts.

    >>> folders("ship"), folders(["cat", "dog"])
    (('ship',), ('cat', 'dog'))
    """
    several = [forget] if isinstance(forget, Path | str) else forget
    return tuple(str(folder) for folder in several)


def default_output(checkpoint: Path, ending: str) -> Path:
    """The path of an output beside its checkpoint.

    >>> default_output(Path("a/net.pth"), ".unlearned.safetensors").name
    'net.unlearned.safetensors'
    """
    if checkpoint.is_dir():
        folder = checkpoint.resolve()  # the name of `.` and of a path that ends in `..`
        return folder.parent / (folder.name + ending)
    return checkpoint.parent / (checkpoint.stem + ending)
