"""An evaluation: the scores of every network of a comparison, and the accuracy that was lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pbu_cli.evaluation.accuracy_loss import AccuracyLoss, estimate_accuracy_loss
from pbu_cli.evaluation.class_losses import ClassLoss, class_losses
from pbu_cli.evaluation.compare import Comparison
from pbu_cli.evaluation.reference_networks import doubts_about_classes, doubts_about_networks
from pbu_cli.evaluation.scores import Scores, score
from pbu_cli.inputs.loaded_model import LoadedModel
from pbu_cli.inputs.resolve import unreadable_images
from pbu_cli.unlearning.objective import restricted_log_softmax, stability


@dataclass(frozen=True)
class Evaluation:
    """Scores of the checkpoint, and of what it is compared with, on the same images.

    images, skipped: how many forget and retained images were used, and how many were left out as
    unreadable, under the keys `forget` and `retain`. class_losses: every retained class, the one
    that lost most first; empty without an original. accuracy_loss: what the checkpoint has lost of
    A_Dr, estimated from the forget images alone; None without an original. loaded: the network that
    labels and normalisation were inferred with.
    """

    scores: tuple[Scores, ...]
    images: dict[str, int]
    skipped: dict[str, int]
    class_losses: tuple[ClassLoss, ...]
    accuracy_loss: AccuracyLoss | None
    loaded: LoadedModel
    warnings: tuple[str, ...]


def score_comparison(comparison: Comparison) -> Evaluation:
    """The scores of all networks and controls of a comparison."""
    prepared, retained = comparison.prepared, comparison.retained
    retain_labels = None if retained is None else retained.labels
    skipped = {
        "forget": prepared.images.bad,
        "retain": () if retained is None else retained.files.bad,
    }
    scores = tuple(
        score(name, outputs, prepared.image_labels, retain_labels)
        for name, outputs in comparison.outputs.items()
    )
    return Evaluation(
        scores=scores,
        images={
            "forget": len(prepared.image_labels),
            "retain": 0 if retain_labels is None else len(retain_labels),
        },
        skipped={key: len(bad) for key, bad in skipped.items()},
        class_losses=class_losses(comparison),
        accuracy_loss=_accuracy_loss(comparison),
        loaded=prepared.loaded,
        warnings=_warnings(comparison, scores),
    )


def _accuracy_loss(comparison: Comparison) -> AccuracyLoss | None:
    """The loss at the drift from the original's predictions on the forget images."""
    if "original" not in comparison.outputs:
        return None
    original = comparison.outputs["original"].forget_logits
    logits = comparison.outputs["checkpoint"].forget_logits.to(original)
    forgotten = comparison.prepared.forgotten.to(original.device)
    drift = stability(logits, restricted_log_softmax(original, forgotten), forgotten)
    return estimate_accuracy_loss(drift.item())


def _warnings(comparison: Comparison, scores: Sequence[Scores]) -> tuple[str, ...]:
    retained, by_name = comparison.retained, {one.name: one for one in scores}
    models = comparison.loaded_models
    found = doubts_about_networks(models, comparison.same_weights, by_name)
    if retained is not None:
        classes = sorted(set(retained.labels.tolist()))
        found += unreadable_images("retained", retained.files)
        found += doubts_about_classes(models["checkpoint"], by_name, classes)
    return tuple(found)
