"""From prepared inputs to the sanitized checkpoint: unlearn, write, measure what was written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pbu_cli.evaluation import metrics
from pbu_cli.evaluation.accuracy_loss import AccuracyLoss, estimate_accuracy_loss
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.io.safetensors_format import Tensors, write
from pbu_cli.io.strict_json import plain
from pbu_cli.models.frozen_backbone import extract, from_features
from pbu_cli.models.kernel_cropping import Crops, cropped, find_crops
from pbu_cli.models.load import load_tensors
from pbu_cli.models.model_config import metadata_with
from pbu_cli.pipeline.anchors import make_anchors
from pbu_cli.pipeline.forget_set import Mirrored, build_forget_set
from pbu_cli.pipeline.output import check_promises, names_in_file, output_tensors, relative_distance
from pbu_cli.settings import FORGOTTEN, UnlearningSettings
from pbu_cli.unlearning.anchor_loss import AnchorLoss, NoAnchors
from pbu_cli.unlearning.loop import Progress, Trainable, unlearn
from pbu_cli.unlearning.objective import restricted_log_softmax, stability

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unlearned:
    """What an unlearning run reached, measured on the file as it was written.

    steps, reason: how many steps were taken and why the run stopped. learning_rate, alpha: as they
    acted at the end. a_df_before, a_df: percent of the forget images that the network still
    predicts as their class. drift: nats, over all forget images; drift_on_anchors: over all
    anchors, before the weights were rounded to the file's dtype, None without anchors. moved:
    ||theta - theta*|| / ||theta*|| over the parameters that changed. answers: percent of the
    forget images by the class predicted for them; its name is part of `--json`.
    """

    steps: int
    reason: str
    learning_rate: float
    alpha: float
    a_df_before: float
    a_df: float
    drift: float
    drift_on_anchors: float | None
    moved: float
    mirrored: Mirrored | None
    answers: dict[int, float]

    @property
    def accuracy_loss(self) -> AccuracyLoss:
        """The loss of A_Dr that is estimated from these drifts."""
        return estimate_accuracy_loss(self.drift, self.drift_on_anchors)

    @property
    def forgotten(self) -> bool:
        return self.a_df <= FORGOTTEN

    def document(self) -> dict[str, Any]:
        """The part `result` of the JSON document; `damage` is the accuracy loss's name there."""
        return {
            **asdict(self),
            "forgotten": self.forgotten,
            "damage": vars(self.accuracy_loss),
        }


def unlearn_and_write(
    inputs: UnlearningInputs,
    fisher: Tensors,
    output: Path,
    settings: UnlearningSettings,
    *,
    run: Mapping[str, Any] | None = None,
    making: Callable[[int], None] = lambda count: None,
    seen: Callable[[Progress], None] = lambda progress: None,
) -> Unlearned:
    """Unlearn, write the sanitized checkpoint, and measure what was written.

    Every number that did not change is written bit-identical, the others in the input's dtype.
    With anchors the head's row of the class changes beside the parameters that train. run: what
    the output's metadata say of this run, the same for the same run. making: called with the
    number of anchors and synthetic forget inputs made so far. seen: called at each check.
    """
    loaded, module = inputs.loaded, inputs.loaded.network.module
    images, mirrored = build_forget_set(inputs, settings.schedule)
    logger.debug("forget set: %d inputs, mirrored images: %s", len(images), mirrored)
    changed = inputs.trained
    last: Progress | None = None
    with _trained_part(inputs) as crops:
        anchor_loss: AnchorLoss | NoAnchors = NoAnchors(module)
        if settings.anchors and (settings.weights.epsilon or settings.weights.zeta):
            images, anchor_loss = make_anchors(inputs, images, settings, making)
        changed = [*changed, *(name for name in anchor_loss.changes if name not in changed)]
        for last in unlearn(
            module, images, fisher, Trainable(inputs.trained, inputs.head, crops),
            weights=settings.weights, schedule=settings.schedule, anchor_loss=anchor_loss,
        ):  # fmt: skip
            seen(last)
            logger.debug("%s", last)
        on_anchors = anchor_loss.drift()
    assert last is not None
    tensors = output_tensors(loaded, changed)
    after = _write(inputs, output, tensors, changed, {} if run is None else plain(run))
    reference = restricted_log_softmax(inputs.logits, inputs.forgotten)
    before, predictions = (z.argmax(dim=1).cpu() for z in (inputs.logits, after))
    return Unlearned(
        steps=last.check.step,
        reason=last.decision.reason,
        learning_rate=last.learning_rate,
        alpha=last.alpha,
        a_df_before=metrics.accuracy(before, inputs.image_labels),
        a_df=metrics.accuracy(predictions, inputs.image_labels),
        drift=stability(after, reference, inputs.forgotten).item(),
        drift_on_anchors=on_anchors,
        moved=relative_distance(loaded.checkpoint.tensors, tensors, changed),
        mirrored=mirrored,
        answers=metrics.prediction_shares(predictions, loaded.network.num_classes),
    )


def _write(
    inputs: UnlearningInputs, output: Path, tensors: Tensors, changed: list[str], run: Any
) -> Tensor:
    """Write the output once what was read back keeps its promises. The logits [n, c] of the file
    as it was written, on the forget images."""
    loaded, module = inputs.loaded, inputs.loaded.network.module
    measured: list[Tensor] = []

    def verify(written: Tensors) -> None:
        found = replace(loaded.checkpoint, stored=written).tensors
        check_promises(loaded.checkpoint.tensors, found, names_in_file(loaded, changed))
        load_tensors(module, found)
        with _trained_part(inputs):  # the frozen backbone has just been found unchanged
            batches = (x for x, _ in inputs.batches(inputs.batch_size))
            measured.append(extract(module, None, batches)[1])

    facts = {
        "forgotten": sorted({*loaded.description.forgotten, *inputs.image_labels.tolist()}),
        "mean": list(inputs.preprocessing.mean),
        "std": list(inputs.preprocessing.std),
        "input_size": [inputs.images.pixels.shape[1], *inputs.preprocessing.size],
        "run": run,
    }
    metadata = metadata_with(loaded.checkpoint.metadata, **facts)
    write(output, loaded.checkpoint.stored_names(tensors), metadata, verify)
    return measured[0]


@contextmanager
def _trained_part(inputs: UnlearningInputs) -> Iterator[Crops]:
    """While it lasts the module takes what `inputs.batches` gives, from the frozen backbone's
    features on, and its kernels are cropped to the region that these inputs use. Yields the crops
    by parameter."""
    module = inputs.loaded.network.module
    some, _ = next(inputs.batches(2))
    with from_features(module, inputs.split_point):
        crops = find_crops(module, some)
        with cropped(module, crops):
            yield crops
