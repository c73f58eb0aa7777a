"""What the features still know of the class: a linear classifier that reads them.

The input of the head is what a network makes of an image before it decides. Where a logistic
regression on it still tells the class from the others, the class is in the network, whatever its
answers are. A network that never saw the class is well above 50 % too: features that tell ships
from nothing they know still differ. What counts is the distance to that network's figure.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pbu_cli.evaluation.statistics import balanced_accuracy, bootstrap, recall

FOLDS, INNER_FOLDS = 5, 3
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # of scikit-learn's C, chosen within the training folds
FEWEST = 20  # images of either group


@dataclass(frozen=True)
class Probe:
    """Percent, with 95 % bootstrap intervals: balanced accuracy, and recall of the forget images
    at 5 % false positives among the retained ones."""

    balanced: float
    balanced_interval: tuple[float, float]
    recall: float
    recall_interval: tuple[float, float]


def probe(forget: Tensor, retain: Tensor, *, seed: int = 0) -> Probe | None:
    """Probe features [m, d] of forget and [n, d] of retained images; None where too few.

    >>> same = torch.arange(60.0)[:, None] % 7
    >>> probe(same + 100, same).balanced
    100.0
    """
    if min(len(forget), len(retain)) < FEWEST:
        return None
    scores = held_out_scores(forget, retain, seed=seed)
    return Probe(
        float(balanced_accuracy(*scores)),
        bootstrap(scores, balanced_accuracy, seed=seed),
        float(recall(*scores)),
        bootstrap(scores, recall, seed=seed),
    )


def held_out_scores(positive: Tensor, negative: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Each image's log odds of being positive, by a classifier that did not see it. [m], [n].

    Logistic regression on standardised features [., d], both groups of equal weight, in five
    stratified folds; its strength of regularisation is the best by balanced accuracy in three
    folds inside the other four, so that nothing about an image decides how it is scored.
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
        {"fit__C": STRENGTHS},
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
    found = torch.from_numpy(scores)
    return found[: len(positive)], found[len(positive) :]
