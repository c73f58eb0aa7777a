"""fisher and unlearn from a prepared to their result, without a word printed: `cli` renders it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pbu_cli.evaluation import metrics
from pbu_cli.evaluation.accuracy_loss import AccuracyLoss, estimated
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.io.safetensors_format import Tensors, write
from pbu_cli.io.strict_json import plain
from pbu_cli.models.build import load
from pbu_cli.models.frozen_backbone import extract, from_features
from pbu_cli.models.kernel_cropping import Crops, cropped, find_crops
from pbu_cli.models.model_config import metadata_with
from pbu_cli.pipeline.anchors import anchors_for
from pbu_cli.pipeline.forget_set import Mirrored, forget_set
from pbu_cli.pipeline.output import check_promises, names_in_file, output_tensors, relative_distance
from pbu_cli.settings import FORGOTTEN, Schedule, Weights
from pbu_cli.unlearning.loop import Progress, unlearn
from pbu_cli.unlearning.objective import restricted_log_softmax, stability


@dataclass(frozen=True)
class Unlearned:
    """What became of a prepared, measured on the file as it was written.

    Percent of the forget images before and after; drift in nats, over all of them, and over all
    anchors where there were any, before the weights were rounded to the file's dtype; moved is
    ||theta - theta*|| / ||theta*|| over the parameters that changed.
    """

    steps: int
    reason: str
    learning_rate: float
    a_df_before: float
    a_df: float
    drift: float
    drift_on_anchors: float | None
    moved: float
    mirrored: Mirrored | None
    answers: dict[int, float]

    @property
    def damage(self) -> AccuracyLoss:
        """What those drifts have cost of A_Dr, as far as they tell."""
        return estimated(self.drift, self.drift_on_anchors)

    @property
    def forgotten(self) -> bool:
        return self.a_df <= FORGOTTEN


def unlearn_and_write(
    prepared: UnlearningInputs,
    fisher: Tensors,
    output: Path,
    *,
    weights: Weights,
    schedule: Schedule,
    anchors: int = 0,
    run: Mapping[str, Any] | None = None,
    making: Callable[[int], None] = lambda count: None,
    seen: Callable[[Progress], None] = lambda progress: None,
) -> Unlearned:
    """Unlearn, write the sanitized checkpoint, and measure what was written.

    Every number that did not change comes out bit-identical, the others in the input's dtype:
    with anchors, the head's row of the class changes beside what trains. So
    many `anchors` are made, where the weights have a use for them; `making` hears of each batch.
    `run` is what the output's metadata are to say of this run; the same for the same run.
    """
    loaded, changed = prepared.loaded, prepared.trained
    module = loaded.network.module
    images, mirrored = forget_set(prepared, schedule)
    last: Progress | None = None
    with _live_tail(prepared) as crops:
        anchor_loss = None
        if anchors and (weights.epsilon or weights.zeta):
            images, anchor_loss = anchors_for(prepared, images, anchors, weights, schedule, making)
            changed = [*changed, *(name for name in anchor_loss.changes if name not in changed)]
        for last in unlearn(
            module, images, fisher,
            trained=prepared.trained, head=prepared.head, weights=weights, schedule=schedule,
            anchor_loss=anchor_loss, crops=crops,
        ):  # fmt: skip
            seen(last)
        on_anchors = None if anchor_loss is None else anchor_loss.drift()
    assert last is not None
    tensors = output_tensors(loaded, changed)
    measured: list[Tensor] = []

    def verify(written: Tensors) -> None:
        checkpoint = loaded.checkpoint
        written = {name.removeprefix(checkpoint.prefix): t for name, t in written.items()}
        check_promises(checkpoint.tensors, written, names_in_file(loaded, changed))
        load(module, written)
        with _live_tail(prepared):  # the frozen trunk has just been found unchanged
            rounds = (inputs for inputs, _ in prepared.batches(prepared.batch_size))
            measured.append(extract(module, None, rounds)[1])

    facts = {
        "forgotten": sorted({*loaded.description.forgotten, *prepared.image_labels.tolist()}),
        "mean": list(prepared.preprocessing.mean),
        "std": list(prepared.preprocessing.std),
        "input_size": [prepared.images.pixels.shape[1], *prepared.preprocessing.size],
        "run": {} if run is None else plain(run),
    }
    write(
        output,
        loaded.checkpoint.stored_names(tensors),
        metadata_with(loaded.checkpoint.metadata, **facts),
        verify,
    )
    after = measured[0]
    reference = restricted_log_softmax(prepared.answers, prepared.forgotten)
    return Unlearned(
        last.seen.step,
        last.decision.reason,
        last.learning_rate,
        metrics.accuracy(prepared.answers.argmax(dim=1).cpu(), prepared.image_labels),
        metrics.accuracy(after.argmax(dim=1).cpu(), prepared.image_labels),
        stability(after, reference, prepared.forgotten).item(),
        on_anchors,
        relative_distance(loaded.checkpoint.tensors, tensors, changed),
        mirrored,
        metrics.answer_shares(after.argmax(dim=1).cpu(), loaded.network.num_classes),
    )


@contextmanager
def _live_tail(prepared: UnlearningInputs) -> Iterator[Crops]:
    """While it lasts the case's module takes what `prepared.batches` gives, its kernels cropped to the
    taps that meet any of it. The crops by parameter."""
    module = prepared.loaded.network.module
    some, _ = next(prepared.batches(2))
    with from_features(module, prepared.split_point):
        crops = find_crops(module, some)
        with cropped(module, crops):
            yield crops
