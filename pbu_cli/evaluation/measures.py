"""What an audit measures: one literal table of names, needs and definitions. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """What a reader has to know of one measure. The fields are keys of the JSON document.

    title: with the unit. needs: the flag, or the flags joined by ` and `, without which the measure
    is unknown; empty where the forget images are enough. definition: ends with the source of the
    95 % interval.
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
    "rmia": Measure(
        "membership by features, |AUC - 0.5|",
        "--members",
        "the same by a logistic regression on the standardised input of the head (rMIA); bootstrap",
        3,
    ),
    "class_recall": Measure(
        "class probe, forget (%)",
        "--retain",
        "share of the forget images that a multinomial logistic regression of all classes on the"
        " standardised input of the head predicts as their own class; C = 0.1, all classes weigh"
        " the same, each image is scored in the fold of 5 that was left out; at most 100 retained"
        " classes, 1,000 of their images and 200 forget images; bootstrap",
        1,
    ),
    "class_others": Measure(
        "class probe, retained (%)",
        "--retain",
        "share of the retained images that the same classifier predicts correctly; bootstrap",
        1,
    ),
    "ncm": Measure(
        "nearest class mean (%)",
        "--retain",
        "share of the forget images whose input of the head is nearer to the mean of their own"
        " class, taken without the image's fold of 5, than to the mean of any retained class;"
        " bootstrap",
        1,
    ),
    **{
        f"pra_{held}": Measure(
            f"prototype of {held}, relearnt (%)",
            "--retain",
            f"A_Df on the other images after the mean input of the head of {held} forget image"
            f"{'s' if held > 1 else ''} became the class's row of the head, at the best of 4 scales"
            " and the best bias that cost at most 5 points of A_Dr (PRA); mean over 20 draws of the"
            f" {held}; bootstrap over the draws",
            1,
        )
        for held in (1, 5, 10)
    },
    "noisy_a_df": Measure(
        "A_Df with noise (%)",
        "",
        "share of noisy copies of forget images that are recognised as their class; 4 copies each"
        " of at most 250 images, with uniform noise of at most 8/255 in each pixel; bootstrap",
        2,
    ),
    "r_tau": Measure(
        "residual knowledge, r_tau",
        "--retrained",
        "that share over the retrained network's; unknown where that network recognises no copy;"
        " bootstrap",
        2,
    ),
    "ou": Measure(
        "over-unlearning, OU@8/255 (nats)",
        "--original",
        "mean KL divergence of the distribution over the retained classes from the original's, on"
        " the same noisy copies; to be compared with 0 and not with the retrained network, which"
        " differs from the original as every other training run does; bootstrap",
        3,
    ),
    "rus_original": Measure(
        "RUS to original",
        "--original and --retain",
        "harmonic mean of 1 - CKA on forget images and CKA on retained images, each of the input of"
        " the head with the original's; at most 500 images each; jackknife",
        2,
    ),
    "rus_retrained": Measure(
        "RUS to retrained",
        "--retrained and --retain",
        "harmonic mean of CKA on forget images and CKA on retained images, each of the input of the"
        " head with the retrained network's; at most 500 images each; jackknife",
        2,
    ),
    "aus": Measure(
        "AUS",
        "--original and --retain",
        "(1 - (A_Dr of the original - A_Dr)) / (1 + A_Df), with accuracies from 0 to 1; the head"
        " mask, which forgets nothing, has about 1; bootstrap",
        3,
    ),
}
