"""What a run has to reach: the class is forgotten, little else is lost, `--require` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pbu_cli.evaluation.class_losses import worst_class_basis
from pbu_cli.evaluation.compare import Comparison
from pbu_cli.evaluation.evaluate import Evaluation
from pbu_cli.evaluation.requirements import (
    ACCURACY_LOSS,
    WORST_CLASS,
    Criterion,
    Requirement,
    basis,
    hold_against,
)
from pbu_cli.pipeline.unlearn import UnlearningResult
from pbu_cli.settings import FORGOTTEN

if TYPE_CHECKING:  # scikit-learn takes seconds to import, and only an audit needs it
    from pbu_cli.audit.run import NetworkAudit


def held_against_max_damage(
    result: UnlearningResult, checkpoint: Path, max_damage: float
) -> Requirement:
    """`--max-damage` in points, held against the estimate: what was compared with what."""
    loss, done = result.unlearned.accuracy_loss, result.unlearned
    anchors = "" if done.drift_on_anchors is None else f" and {result.settings.anchors:,} anchors"
    basis = (
        f"points of A_Dr, {loss}, estimated from how far the predictions of {result.output.name} on"
        f" {result.images:,} forget images{anchors} are from those of {checkpoint.name}; no"
        " retained image was used"
    )
    criterion = Criterion(ACCURACY_LOSS, "<=", max_damage)
    return hold_against(criterion, {ACCURACY_LOSS: loss.estimate}, basis=basis)


def failure(result: UnlearningResult, max_damage: float | None) -> str:
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
            f" points (at most {max_damage:g} expected), judged by the {result.images:,} forget"
            f" images alone; {done.reason}: lower --alpha, or measure it with pbu evaluate --retain"
        )
    return ""


def held_against_evaluation(
    criteria: Sequence[Criterion],
    comparison: Comparison,
    evaluation: Evaluation,
    audited: Sequence[NetworkAudit],
    checkpoints: Mapping[str, Path],
) -> tuple[Requirement, ...]:
    """`--require`, held against the figures of an evaluation and its audit.

    checkpoints: the paths of the networks, by name.
    """
    loss, losses = evaluation.accuracy_loss, evaluation.class_losses
    figures: dict[str, dict[str, float | None]] = {
        scores.name: {"A_Df": scores.a_df, "A_Dr": scores.a_dr} for scores in evaluation.scores
    }
    for one in audited:
        figures[one.name] |= {key: estimate.value for key, estimate in one.measures.items()}
    figures["checkpoint"][ACCURACY_LOSS] = None if loss is None else loss.estimate
    figures["checkpoint"][WORST_CLASS] = losses[0].change if losses else None
    retrained = figures.get("retrained")
    files = {name: path.name for name, path in checkpoints.items()}
    if any("retrained" in pair for pair in comparison.same_weights):
        # It is one of the networks that it is to be compared with.
        retrained = None
        del files["retrained"]
    images, sample = evaluation.images, comparison.sample

    def basis_of(criterion: Criterion) -> str:
        if criterion.measure == WORST_CLASS:
            return worst_class_basis(losses, (files["checkpoint"], files["original"]))
        if criterion.needs_audit and sample is not None:
            return basis(criterion, files, {**images, "retain": len(sample.labels)})
        return basis(criterion, files, images)

    return tuple(
        hold_against(criterion, figures["checkpoint"], retrained, basis_of(criterion))
        for criterion in criteria
    )
