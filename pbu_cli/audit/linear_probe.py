"""The linear probe: how well a linear classifier tells the class by the network's features.

The features are the input of the head. Where a logistic regression on them still tells the forget
images from the retained ones, the class is still in the network, whatever the network predicts. A
network that never saw the class is well above 50 % too, because its features of unknown images
differ from those of the classes that it knows. What counts is the distance to that network's value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pbu_cli.evaluation.statistics import balanced_accuracy, bootstrap, recall

FOLDS, INNER_FOLDS = 5, 3
# Values of scikit-learn's C, the inverse of the regularisation; chosen inside the training folds.
INVERSE_REGULARISATIONS = (0.01, 0.1, 1.0, 10.0)
MIN_IMAGES = 20  # of each group


@dataclass(frozen=True)
class Probe:
    """What the probe reaches, in percent, with 95 % bootstrap intervals.

    balanced: balanced accuracy. recall: share of the forget images that are found at a threshold
    which 5 % of the retained images exceed.
    """

    balanced: float
    balanced_interval: tuple[float, float]
    recall: float
    recall_interval: tuple[float, float]


def probe(forget: Tensor, retain: Tensor, *, seed: int = 0) -> Probe | None:
    """Probe the features of forget images [m, d] and of retained images [n, d].

    None where either group has fewer than 20 images.

    >>> same = torch.arange(60.0)[:, None] % 7
    >>> probe(same + 100, same).balanced
    100.0
    """
    if min(len(forget), len(retain)) < MIN_IMAGES:
        return None
    scores = held_out_scores(forget, retain, seed=seed)
    return Probe(
        float(balanced_accuracy(*scores)),
        bootstrap(scores, balanced_accuracy, seed=seed),
        float(recall(*scores)),
        bootstrap(scores, recall, seed=seed),
    )


def held_out_scores(positive: Tensor, negative: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Each image's log odds of being positive, by a classifier that was not fitted to the image.

    positive [m, d] and negative [n, d] -> [m] and [n]. The classifier is a logistic regression on
    standardised features, both groups with equal weight. Each of five stratified folds is scored by
    a classifier fitted to the other four. Its regularisation is the one with the best balanced
    accuracy in three folds inside these four, so that it does not depend on the images scored.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    features = torch.cat([positive, negative]).float().cpu().numpy()
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    classifier = Pipeline(
        [
            ("scale", StandardScaler()),
            ("fit", LogisticRegression(class_weight="balanced", max_iter=1000)),
        ]
    )
    search = GridSearchCV(
        classifier,
        {"fit__C": INVERSE_REGULARISATIONS},
        scoring="balanced_accuracy",
        cv=StratifiedKFold(INNER_FOLDS, shuffle=True, random_state=seed % 2**32),
    )
    scores = cross_val_predict(
        search,
        features,
        labels,
        cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed % 2**32),
        method="decision_function",
    )
    log_odds = torch.from_numpy(scores)
    return log_odds[: len(positive)], log_odds[len(positive) :]
