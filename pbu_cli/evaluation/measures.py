"""What an audit measures: one literal table of names, needs and definitions. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """needs: the flag without which it is unknown; empty where the forget images are enough.
    definition: ends with where its 95 % interval comes from. places: after the point."""

    title: str
    needs: str
    definition: str
    places: int


MEASURES: dict[str, Measure] = {
    "probe": Measure(
        "probe, balanced (%)",
        "--retain",
        "logistic regression on the standardised input of the head, forget against retained images"
        " of equal weight, strength chosen inside the training folds, scored on the fold left out"
        " of 5; bootstrap",
        1,
    ),
    "probe_recall": Measure(
        "probe, recall at 5 % FPR (%)",
        "--retain",
        "forget images that the same probe finds with 5 % of the retained ones; bootstrap",
        1,
    ),
    "odds_auc": Measure(
        "odds AUC",
        "--retain",
        "P(z_c - logsumexp of the kept logits is larger for a forget than for a retained image);"
        " of the head mask before masking, since who may shift a bias undoes it; bootstrap",
        3,
    ),
    "relearnt": Measure(
        "relearnt (%)",
        "--retain",
        "best A_Df after at most 40 steps on 10 forget images, all parameters, by SGD at 3 rates or"
        " Adam at 2, then of all biases that cost at most 5 points of A_Dr; images left out of the"
        " tuning; mean of 8 draws of the ten, bootstrap over them",
        1,
    ),
    "js": Measure(
        "JS to retrained (bits)",
        "--retrained",
        "mean over forget images of the Jensen-Shannon divergence of the answers; bootstrap",
        3,
    ),
    "effective_classes": Measure(
        "effective classes",
        "",
        "exp of the entropy of the mean answer to forget images; bootstrap",
        2,
    ),
    "log_p_forget": Measure(
        "log P(class), forget (nats)",
        "",
        "mean over forget images of log P(class); bootstrap",
        2,
    ),
    "log_p_retain": Measure(
        "log P(class), retained (nats)",
        "--retain",
        "mean over retained images of log P(class); bootstrap",
        2,
    ),
    "membership": Measure(
        "membership, |AUC - 0.5|",
        "--members",
        "entropy, confidence, modified entropy and loss joined by a logistic regression, nested"
        " cross-validation, forget images trained on against as many never seen; bootstrap",
        3,
    ),
}
