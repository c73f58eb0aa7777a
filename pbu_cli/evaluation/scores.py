"""The accuracies of one network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pbu_cli.evaluation import metrics
from pbu_cli.evaluation.outputs import NetworkOutputs
from pbu_cli.evaluation.statistics import wilson_interval


@dataclass(frozen=True)
class Scores:
    """The accuracies of one network in percent; None where no retained images were given.

    a_df: share of the forget images that are predicted as their own class. a_dr: the same of the
    retained images. The intervals are 95 %, by Wilson. per_class: accuracy by class, of the classes
    that have images. answers: share of the forget images by predicted class.

    The fields are the keys of the JSON document and of the run record: `answers` keeps its name
    for them.
    """

    name: str
    a_df: float
    a_df_interval: tuple[float, float]
    a_dr: float | None
    a_dr_interval: tuple[float, float] | None
    per_class: dict[int, float]
    answers: dict[int, float]


def score(
    name: str, outputs: NetworkOutputs, forget_labels: Tensor, retain_labels: Tensor | None
) -> Scores:
    """The scores of one network from its logits and the int64 labels of the images, [n] and [m]."""
    predictions = outputs.forget_logits.argmax(dim=1).cpu()
    a_df = metrics.accuracy(predictions, forget_labels)
    per_class = metrics.accuracy_per_class(predictions, forget_labels)
    a_dr = a_dr_interval = None
    retain_predictions = outputs.retain_predictions
    if retain_predictions is not None and retain_labels is not None:
        a_dr = metrics.accuracy(retain_predictions, retain_labels)
        a_dr_interval = wilson_interval(a_dr, len(retain_labels))
        per_class |= metrics.accuracy_per_class(retain_predictions, retain_labels)
    return Scores(
        name,
        a_df,
        wilson_interval(a_df, len(forget_labels)),
        a_dr,
        a_dr_interval,
        dict(sorted(per_class.items())),
        metrics.prediction_shares(predictions, outputs.forget_logits.shape[1]),
    )
