"""Accuracies of one network, and the evaluation that gathers them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pbu_cli.evaluation import metrics
from pbu_cli.evaluation.outputs import Answers


@dataclass(frozen=True)
class Scores:
    """Accuracies of one network, percent; None where no retained images were given.

    a_df: forget images answered with their own label. a_dr: retained images answered right.
    intervals: 95 %, Wilson. answers: where the forget images go, percent by class.
    """

    name: str
    a_df: float
    a_df_interval: tuple[float, float]
    a_dr: float | None
    a_dr_interval: tuple[float, float] | None
    per_class: dict[int, float]
    answers: dict[int, float]


def score(name: str, answers: Answers, forget: Tensor, retain: Tensor | None) -> Scores:
    """The scores of one network. forget, retain: int64 labels of the images answered."""
    given = answers.forget.argmax(dim=1).cpu()
    a_df = metrics.accuracy(given, forget)
    per_class = metrics.accuracy_per_class(given, forget)
    a_dr = bounds = None
    if answers.retain is not None and retain is not None:
        kept = answers.retain.argmax(dim=1).cpu()
        a_dr = metrics.accuracy(kept, retain)
        bounds = metrics.interval(a_dr, len(retain))
        per_class |= metrics.accuracy_per_class(kept, retain)
    return Scores(
        name,
        a_df,
        metrics.interval(a_df, len(forget)),
        a_dr,
        bounds,
        dict(sorted(per_class.items())),
        metrics.answer_shares(given, answers.forget.shape[1]),
    )
