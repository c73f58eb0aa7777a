"""What an unlearning run has to reach: the class is forgotten, and little else is lost."""

from __future__ import annotations

from pathlib import Path

from pbu_cli.evaluation.requirements import ACCURACY_LOSS, Criterion, Requirement, hold_against
from pbu_cli.pipeline.unlearn import UnlearningResult
from pbu_cli.settings import FORGOTTEN


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
