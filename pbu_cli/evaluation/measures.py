"""What an audit measures: one literal table of names, needs and definitions. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """What a reader has to know of one measure. The fields are keys of the JSON document.

    title: with the unit. needs: the flag without which the measure is unknown; empty where the
    forget images are enough. definition: ends with the source of the 95 % interval.
    places: decimals to show.
    """

    title: str
    needs: str
    definition: str
    places: int


MEASURES: dict[str, Measure] = {
    "probe": Measure(
        "probe, balanced (%)",
        "--retain",
        "balanced accuracy of a logistic regression that tells forget from retained images by the"
        " standardised input of the head; both groups weigh the same, the regularisation is chosen"
        " inside the training folds, and each image is scored in the fold of 5 that was left out;"
        " bootstrap",
        1,
    ),
    "probe_recall": Measure(
        "probe, recall at 5 % FPR (%)",
        "--retain",
        "share of the forget images that the same probe finds when it takes 5 % of the retained"
        " images for forget images; bootstrap",
        1,
    ),
    "odds_auc": Measure(
        "odds AUC",
        "--retain",
        "P(z_c - logsumexp of the retained classes' logits is larger for a forget image than for a"
        " retained image), where z_c is the logit of the forgotten class; for the head mask it is"
        " measured before masking, because whoever may shift a bias undoes the mask; bootstrap",
        3,
    ),
    "relearnt": Measure(
        "relearnt (%)",
        "--retain",
        "best A_Df after all parameters were tuned for at most 40 steps on 10 forget images, by SGD"
        " at 3 rates or Adam at 2, and the bias of the class was shifted at a cost of at most 5"
        " points of A_Dr; scored on images that the tuning did not use; mean over 8 draws of the"
        " 10 images; bootstrap over the draws",
        1,
    ),
    "js": Measure(
        "JS to retrained (bits)",
        "--retrained",
        "mean over the forget images of the Jensen-Shannon divergence between the predicted"
        " distribution and the retrained network's; bootstrap",
        3,
    ),
    "effective_classes": Measure(
        "effective classes",
        "",
        "exp of the entropy of the mean predicted distribution over the forget images; bootstrap",
        2,
    ),
    "log_p_forget": Measure(
        "log P(class), forget (nats)",
        "",
        "mean over the forget images of the log probability of the forgotten class; bootstrap",
        2,
    ),
    "log_p_retain": Measure(
        "log P(class), retained (nats)",
        "--retain",
        "mean over the retained images of the log probability of the forgotten class; bootstrap",
        2,
    ),
    "membership": Measure(
        "membership, |AUC - 0.5|",
        "--members",
        "how well a logistic regression on entropy, confidence, modified entropy and loss tells"
        " forget images that were trained on from as many that were never seen, by nested"
        " cross-validation; bootstrap",
        3,
    ),
}
