"""From prepared inputs to the sanitized checkpoint: unlearn, measure, write."""

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
from pbu_cli.io.model_folder import write_folder
from pbu_cli.io.safetensors_format import Fingerprint, Tensors, write
from pbu_cli.io.strict_json import plain
from pbu_cli.models.frozen_backbone import extract, from_features
from pbu_cli.models.kernels.kernel_cropping import Crops, cropped, find_crops
from pbu_cli.models.model_config import metadata_with
from pbu_cli.models.network import load_tensors
from pbu_cli.pipeline.anchors import make_anchors
from pbu_cli.pipeline.forget_set import Mirrored, build_forget_set
from pbu_cli.pipeline.history import answers_entry
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
    acted at the end. goal: the log odds of the class that forgetting aimed for. a_df_before, a_df:
    percent of the forget images that the network still predicts as their class. drift: nats, over
    all forget images; drift_on_anchors: over all anchors, before the weights were rounded to the
    file's dtype, None without anchors. moved: ||theta - theta*|| / ||theta*|| over the parameters
    that changed. answers: percent of the forget images by the class predicted for them; its name is
    part of `--json`.
    """

    steps: int
    reason: str
    learning_rate: float
    alpha: float
    goal: float
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


@dataclass(frozen=True)
class Sanitized:
    """The tensors of the output, by the module's names, and what was measured with them.

    changed: the names of the parameters that changed. metadata: of the output file.
    """

    tensors: Tensors
    changed: list[str]
    metadata: dict[str, str]
    unlearned: Unlearned


def sanitize(
    inputs: UnlearningInputs,
    fisher: Tensors,
    settings: UnlearningSettings,
    *,
    run: Mapping[str, Any] | None = None,
    making: Callable[[int], None] = lambda count: None,
    seen: Callable[[Progress], None] = lambda progress: None,
) -> Sanitized:
    """Unlearn, and measure the tensors as the file will have them.

    Every number that did not change stays bit-identical, the others are in the input's dtype.
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
    after = _logits(inputs, tensors)
    facts = _metadata(inputs, after, {} if run is None else plain(run))
    reference = restricted_log_softmax(inputs.logits, inputs.forgotten)
    before, predictions = (z.argmax(dim=1).cpu() for z in (inputs.logits, after))
    unlearned = Unlearned(
        steps=last.check.step,
        reason=last.decision.reason,
        learning_rate=last.learning_rate,
        alpha=last.alpha,
        goal=settings.schedule.goal(loaded.network.num_classes),
        a_df_before=metrics.accuracy(before, inputs.image_labels),
        a_df=metrics.accuracy(predictions, inputs.image_labels),
        drift=stability(after, reference, inputs.forgotten).item(),
        drift_on_anchors=on_anchors,
        moved=relative_distance(loaded.checkpoint.tensors, tensors, changed),
        mirrored=mirrored,
        answers=metrics.prediction_shares(predictions, loaded.network.num_classes),
    )
    return Sanitized(tensors, changed, facts, unlearned)


def _logits(inputs: UnlearningInputs, tensors: Tensors) -> Tensor:
    """The logits [n, c] of the forget images under these tensors, as the file will have them."""
    module = inputs.loaded.network.module
    load_tensors(module, tensors)
    with _trained_part(inputs):  # the tensors of the frozen backbone are those of the input
        batches = (x for x, _ in inputs.batches(inputs.batch_size))
        return extract(module, None, batches)[1]


def _metadata(inputs: UnlearningInputs, logits: Tensor, run: Any) -> dict[str, str]:
    """The metadata of the output: the input's, and what this run did.

    logits: what the output gives for the forget images.
    """
    loaded, labels = inputs.loaded, inputs.image_labels
    facts = {
        "forgotten": sorted({*loaded.description.forgotten, *labels.tolist()}),
        "answers": answers_entry(loaded, labels, logits.argmax(dim=1).cpu()),
        "mean": list(inputs.preprocessing.mean),
        "std": list(inputs.preprocessing.std),
        "input_size": [inputs.images.pixels.shape[1], *inputs.preprocessing.size],
        "run": run,
    }
    if inputs.resizing is not None:
        facts["resizing"] = inputs.resizing.entry()
    if inputs.stem_pool is not None:
        facts["stem_pool"] = inputs.stem_pool
    return metadata_with(loaded.checkpoint.metadata, **facts)


def write_sanitized(
    inputs: UnlearningInputs,
    output: Path,
    sanitized: Sanitized,
    before_it_appears: Callable[[Fingerprint], None],
) -> None:
    """Write the output once what was read back is what was measured and keeps its promises.

    before_it_appears: called with the fingerprint of the whole file, which appears only after it.
    """
    loaded = inputs.loaded

    def verify(written: Tensors) -> None:
        found = replace(loaded.checkpoint, stored=written).tensors
        check_promises(loaded.checkpoint.tensors, found, names_in_file(loaded, sanitized.changed))

    tensors = loaded.checkpoint.stored_names(sanitized.tensors)
    if loaded.checkpoint.files:
        write_folder(
            output, loaded.checkpoint, tensors, sanitized.metadata, verify, before_it_appears
        )
        return
    write(
        output,
        tensors,
        sanitized.metadata,
        verify,
        like=loaded.checkpoint.path,
        before_it_appears=before_it_appears,
    )


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
