"""The forgotten class among all others: a multinomial probe and the nearest class mean.

Both use the input of the head. The linear probe of `linear_probe` asks whether the forget images
differ from the retained ones taken together. Here they have to be told from each single class,
which is what a new head on the same features would have to do. A network that never saw the class
passes this to a large part too. What counts is the distance to that network's value.

Sources: Kim, Cha and Kim, "Are we truly forgetting? A critical re-examination of machine unlearning
evaluation protocols", arXiv 2503.06991 (classifiers on the features of all classes); Mensink et
al., "Distance-based image classification: generalizing to new classes at near-zero cost", TPAMI
2013 (nearest class mean).

Index letters: n, m images, d features, c classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pbu_cli.audit.estimates import Estimate, mean_estimate
from pbu_cli.audit.linear_probe import FOLDS, MIN_IMAGES

INVERSE_REGULARISATION = 0.1  # scikit-learn's C, on standardised features
MAX_CLASSES = 100  # retained classes that the multinomial probe tells apart
MAX_RETAINED = 1000  # retained images of all classes together that it is fitted to
MAX_FORGET = 200  # forget images that it is fitted to


@dataclass(frozen=True)
class ClassProbe:
    """What the multinomial probe reaches, in percent, each image scored in the fold left out.

    recall: share of the forget images that are predicted as their own class. others: share of the
    retained images that are.
    """

    recall: Estimate
    others: Estimate


def class_probe(
    forget: tuple[Tensor, Tensor], retain: tuple[Tensor, Tensor], *, seed: int = 0
) -> ClassProbe | None:
    """A multinomial logistic regression on features [n, d] with int64 labels [n] of all classes.

    All classes weigh the same. So that time and memory stay bounded, at most 100 retained classes
    are used, at most 1,000 of their images and as many of each class as of any other where there
    are enough, and at most 200 forget images; all drawn by `seed`, the same for every network.

    None where there are fewer than 20 forget images, a forgotten class with fewer than five of
    these, or fewer than two retained classes with five images each.
    """
    chosen = _sample(retain[1], seed)
    if len(forget[1]) < MIN_IMAGES or chosen is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randperm(len(forget[1]), generator=generator)[:MAX_FORGET]
    features = torch.cat([forget[0][kept], retain[0][chosen]])
    labels = torch.cat([forget[1][kept], retain[1][chosen]])
    if int(forget[1][kept].unique(return_counts=True)[1].min()) < FOLDS:
        return None
    correct = 100.0 * (held_out_predictions(features, labels, seed=seed) == labels).double()
    return ClassProbe(
        mean_estimate(correct[: len(kept)], seed), mean_estimate(correct[len(kept) :], seed)
    )


def held_out_predictions(features: Tensor, labels: Tensor, *, seed: int = 0) -> Tensor:
    """The class of each image by a classifier that was not fitted to it: [n, d], [n] -> [n].

    Multinomial logistic regression on standardised features, C = 0.1, in five stratified folds.

    >>> labels = torch.arange(3).repeat(10)
    >>> bool((held_out_predictions(torch.eye(3)[labels], labels) == labels).all())
    True
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(
        StandardScaler(),
        LogisticRegression(
            C=INVERSE_REGULARISATION, class_weight="balanced", max_iter=200, tol=1e-3
        ),
    )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits do not matter
        found = cross_val_predict(classifier, features.float().numpy(), labels.numpy(), cv=folds)
    return torch.from_numpy(found)


def nearest_class_mean(
    forget: tuple[Tensor, Tensor], retain: tuple[Tensor, Tensor], *, seed: int = 0
) -> Estimate | None:
    """Percent of the forget images whose nearest class mean is that of their own class.

    features [n, d] with int64 labels [n]; Euclidean distances. The mean of an image's own class is
    taken over the other four of five folds of the forget images, drawn by `seed`. The means of the
    retained classes are taken over all retained images.

    None where there are fewer than 20 forget images.

    >>> far, near = torch.ones(20, 1) * 9 + torch.arange(20.0)[:, None] / 20, torch.zeros(4, 1)
    >>> labels = torch.ones(20, dtype=torch.long), torch.zeros(4, dtype=torch.long)
    >>> nearest_class_mean((far, labels[0]), (near, labels[1])).value
    100.0
    """
    if len(forget[1]) < MIN_IMAGES:
        return None
    classes, means = _class_means(*retain)
    generator = torch.Generator().manual_seed(seed)
    folds = torch.randperm(len(forget[1]), generator=generator) % FOLDS
    correct = torch.zeros(len(forget[1]), dtype=torch.double)
    for fold in range(FOLDS):
        out = folds == fold
        own_classes, own_means = _class_means(forget[0][~out], forget[1][~out])
        distances = torch.cdist(forget[0][out].double(), torch.cat([own_means, means]))
        nearest = torch.cat([own_classes, classes])[distances.argmin(dim=1)]
        correct[out] = 100.0 * (nearest == forget[1][out]).double()
    return mean_estimate(correct, seed)


def _class_means(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The classes that occur, int64 [c], and their mean features, float64 [c, d]."""
    classes, index = labels.unique(return_inverse=True)
    sums = torch.zeros(len(classes), features.shape[1], dtype=torch.double)
    sums.index_add_(0, index, features.double())
    return classes, sums / torch.bincount(index)[:, None]


def _sample(labels: Tensor, seed: int) -> Tensor | None:
    """Which retained images the probe uses, int64; None for fewer than two classes of five."""
    generator = torch.Generator().manual_seed(seed)
    classes, counts = labels.unique(return_counts=True)
    classes = classes[counts >= FOLDS]
    if len(classes) < 2:
        return None
    classes = classes[torch.randperm(len(classes), generator=generator)[:MAX_CLASSES]]
    each = max(FOLDS, MAX_RETAINED // len(classes))
    chosen = []
    for c in classes.sort().values:
        own = (labels == c).nonzero()[:, 0]
        chosen.append(own[torch.randperm(len(own), generator=generator)[:each]])
    return torch.cat(chosen)
