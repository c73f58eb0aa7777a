"""An evaluation: the scores of every network of a comparison, and what was lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pbu_cli.evaluation.accuracy_loss import AccuracyLoss, estimated
from pbu_cli.evaluation.compare import Comparison, compare
from pbu_cli.evaluation.scores import Scores, score
from pbu_cli.inputs.inferred import Note
from pbu_cli.inputs.loaded_model import LoadedModel
from pbu_cli.inputs.resolve import left_out
from pbu_cli.settings import InputOptions
from pbu_cli.unlearning.objective import restricted_log_softmax, stability


@dataclass(frozen=True)
class Evaluation:
    """Scores of the checkpoint, and of what it is compared with, on the same images.

    images, skipped: how many of the forget and of the retained images were used, and how many left
    out as unreadable, under `forget` and `retain`. damage: what the checkpoint has lost of A_Dr,
    estimated from the forget images alone; None without an original to have drifted from.
    """

    scores: tuple[Scores, ...]
    images: dict[str, int]
    skipped: dict[str, int]
    damage: AccuracyLoss | None
    loaded: LoadedModel
    warnings: tuple[str, ...]


def scored(comparison: Comparison) -> Evaluation:
    """The scores of what was compared."""
    prepared, retained = comparison.prepared, comparison.retained
    used = {"forget": prepared.images, "retain": retained}
    return Evaluation(
        tuple(
            score(name, answers, prepared.image_labels, comparison.labels)
            for name, answers in comparison.answers.items()
        ),
        {which: 0 if some is None else len(some.pixels) for which, some in used.items()},
        {which: 0 if some is None else len(some.bad) for which, some in used.items()},
        _damage(comparison),
        prepared.loaded,
        prepared.warnings
        + (() if retained is None else tuple(left_out("retained", retained)))
        + tuple(
            f"A_Dr leaves out class {prepared.loaded.class_name(label)}, which only the checkpoint's"
            " own metadata call forgotten: --forget its images too, or do not rely on this A_Dr"
            for label in comparison.taken_at_its_word
        ),
    )


def _damage(comparison: Comparison) -> AccuracyLoss | None:
    if "original" not in comparison.answers:
        return None
    before, after = (comparison.answers[name].forget for name in ("original", "checkpoint"))
    gone = comparison.prepared.forgotten.to(before.device)
    drift = stability(after.to(before), restricted_log_softmax(before, gone), gone)
    return estimated(drift.item())


def evaluate(
    checkpoint: Path,
    forget: Sequence[str],
    options: InputOptions,
    note: Note,
    *,
    retain: str | None = None,
    original: Path | None = None,
    retrained: Path | None = None,
    stdin: BinaryIO | None = None,
) -> Evaluation:
    """Score a checkpoint on forget images and, where given, on retained ones; see `compare`."""
    return scored(
        compare(
            checkpoint, forget, options, note,
            retain=retain, original=original, retrained=retrained, stdin=stdin,
        )
    )  # fmt: skip
