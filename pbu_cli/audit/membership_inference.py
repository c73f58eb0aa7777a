"""Membership inference: do logits or features tell which forget images a network was trained on?

The members are forget images that the network was trained on, the non-members are images of the
same class that it never saw. Whoever can tell them apart knows not only the class, but that this
very image was used.

Both groups are cut to the same size, so that guessing gives an AUC of 0.5. The classifier that
combines the signals never scores an image that it was fitted to. The advantage |AUC - 0.5| is
two-sided, because unlearning that turns the sign of a signal leaves an equally strong signal. With
m images in each group it is about 0.33 / sqrt(m) where there is nothing to tell. The reference is a
network that was retrained without the images.

Sources: Yeom et al. 2018 (loss), Salem et al. 2019 (confidence, entropy), Song and Mittal 2021
(modified entropy).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pbu_cli.audit.linear_probe import MIN_IMAGES, held_out_scores
from pbu_cli.evaluation.statistics import auc, bootstrap

MAX_LOSS = 1e3  # nats; stands for the infinite loss of a masked logit
COMBINED = "all four"  # the classifier on all signals; a key of the JSON document
FEATURES = "input of the head"  # the classifier on the features; a key of the JSON document


@dataclass(frozen=True)
class Advantage:
    """|AUC - 0.5| with a 95 % bootstrap interval, and the AUC itself with members as positives."""

    value: float
    interval: tuple[float, float]
    auc: float


def signals(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The four signals, larger for images that look like members. [n, c], int64 [n] -> [n] each.

    With p = softmax(z) and s the image's own label:
    entropy             sum_y p_y log p_y (minus the entropy)
    confidence          max_y p_y
    modified entropy    (1 - p_s) log p_s + sum_{y != s} p_y log(1 - p_y)
    loss                log p_s (minus the loss)

    >>> found = signals(torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([0]))
    >>> [round(value.item(), 4) for value in found.values()]   # p = .75, .25
    [-0.5623, 0.75, -0.1438, -0.2877]
    """
    log_p = logits.double().log_softmax(dim=1)
    p = log_p.exp()
    # log(1 - p_y). For the likeliest class it is the log of the sum of the other probabilities,
    # because the class's own p may round to 1.
    top = log_p.argmax(dim=1, keepdim=True)
    rest = log_p.scatter(1, top, -math.inf).logsumexp(dim=1, keepdim=True)
    log_not_p = torch.log1p(-p).scatter(1, top, rest).clamp_min(-MAX_LOSS)
    log_p = log_p.clamp_min(-MAX_LOSS)
    own = labels.to(log_p.device)[:, None]
    products = p * log_not_p
    modified = log_not_p.exp().gather(1, own) * log_p.gather(1, own)
    return {
        "entropy": (p * log_p).sum(dim=1),
        "confidence": p.amax(dim=1),
        "modified entropy": modified[:, 0] + products.sum(dim=1) - products.gather(1, own)[:, 0],
        "loss": log_p.gather(1, own)[:, 0],
    }


def membership_advantages(
    member_logits: Tensor,
    member_labels: Tensor,
    non_member_logits: Tensor,
    non_member_labels: Tensor,
    *,
    seed: int = 0,
) -> dict[str, Advantage] | None:
    """The advantage of each signal, and of the classifier on all four. None for too few images.

    logits [m, c] of the members and [n, c] of the non-members, with int64 labels. The larger group
    is cut to the size of the smaller one by `seed`. The classifier, under the key `all four`, is
    the nested cross-validated logistic regression of `held_out_scores`.
    """
    count = min(len(member_logits), len(non_member_logits))
    if count < MIN_IMAGES:
        return None
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for logits, labels in ((member_logits, member_labels), (non_member_logits, non_member_labels)):
        chosen = torch.randperm(len(logits), generator=generator)[:count]
        groups.append(signals(logits.cpu()[chosen], labels.cpu()[chosen]))
    members, non_members = groups
    scores = {name: (members[name], non_members[name]) for name in members}
    features = [torch.stack(list(group.values()), dim=1) for group in groups]
    scores[COMBINED] = held_out_scores(features[0], features[1], seed=seed)
    return {name: advantage(*pair, seed=seed) for name, pair in scores.items()}


def representation_advantage(
    members: Tensor, non_members: Tensor, *, seed: int = 0
) -> Advantage | None:
    """The same attack on the input of the head, [m, d] and [n, d]. None for too few images.

    It is the nested cross-validated logistic regression of `held_out_scores` on standardised
    features. Source: the representation-level attack (rMIA) of Le et al., "POUR", CVPR 2026, arXiv
    2511.19339: five folds of a linear classifier on features of training and test images of all
    classes, and the share of the forget images among the training images that it calls members.
    Here both groups are of the forgotten class alone, so that it needs no other images, and the
    result is a two-sided advantage like the others.
    """
    count = min(len(members), len(non_members))
    if count < MIN_IMAGES:
        return None
    generator = torch.Generator().manual_seed(seed)
    groups = [
        features.cpu()[torch.randperm(len(features), generator=generator)[:count]]
        for features in (members, non_members)
    ]
    return advantage(*held_out_scores(groups[0], groups[1], seed=seed), seed=seed)


def advantage(members: Tensor, non_members: Tensor, *, seed: int = 0) -> Advantage:
    """The advantage of one score, [m] and [n]. The interval is that of the AUC, folded at 0.5.

    >>> advantage(torch.zeros(5), torch.zeros(5)).value
    0.0
    """
    value = float(auc(members, non_members))
    low, high = (bound - 0.5 for bound in bootstrap((members, non_members), auc, seed=seed))
    nearest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    return Advantage(abs(value - 0.5), (nearest, max(abs(low), abs(high))), value)
