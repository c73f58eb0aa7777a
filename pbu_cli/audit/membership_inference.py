"""Membership inference: can one tell, from the answers, which forget images were trained on?

`members` are forget images that the network was trained on, `others` images of the same class that
it never saw. An attacker who tells them apart knows more than the class: that this image was used.
Both groups are cut to the same size, so that guessing gives 0.5, and the classifier that joins the
measures never scores an image it saw. Reported is |AUC - 0.5|, two-sided: forgetting that turns the
sign of a signal leaves as strong a signal. Of m + m images it is about 0.33 / sqrt(m) where nothing
is to be told; a network retrained without the images is the reference.

Sources: Yeom et al. 2018 (loss), Salem et al. 2019 (confidence, entropy), Song and Mittal 2021
(modified entropy).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pbu_cli.audit.linear_probe import FEWEST, held_out_scores
from pbu_cli.evaluation.statistics import auc, bootstrap

CEILING = 1e3  # nats; what a masked logit's infinite loss counts as


@dataclass(frozen=True)
class Advantage:
    """|AUC - 0.5| with a 95 % bootstrap interval, and the AUC itself, members as positives."""

    value: float
    interval: tuple[float, float]
    auc: float


def signals(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What attacks look at, larger for images that look like members. [n, c], int64 [n] -> [n].

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
    # log(1 - p_y), for the likeliest class as log of the sum of the others: its p may round to 1.
    top = log_p.argmax(dim=1, keepdim=True)
    rest = log_p.scatter(1, top, -math.inf).logsumexp(dim=1, keepdim=True)
    others = torch.log1p(-p).scatter(1, top, rest).clamp_min(-CEILING)
    log_p = log_p.clamp_min(-CEILING)
    own = labels.to(log_p.device)[:, None]
    mixed = p * others
    modified = others.exp().gather(1, own) * log_p.gather(1, own)
    return {
        "entropy": (p * log_p).sum(dim=1),
        "confidence": p.amax(dim=1),
        "modified entropy": modified[:, 0] + mixed.sum(dim=1) - mixed.gather(1, own)[:, 0],
        "loss": log_p.gather(1, own)[:, 0],
    }


def attack(
    members: Tensor,
    member_labels: Tensor,
    others: Tensor,
    other_labels: Tensor,
    *,
    seed: int = 0,
) -> dict[str, Advantage] | None:
    """The advantage by measure, and of the classifier on all four; None where too few images.

    logits [m, c] and [n, c], int64 labels; the larger group is cut to the size of the smaller by
    `seed`. `all four` is the nested cross-validated logistic regression of `held_out_scores`.
    """
    count = min(len(members), len(others))
    if count < FEWEST:
        return None
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for logits, labels in ((members, member_labels), (others, other_labels)):
        chosen = torch.randperm(len(logits), generator=generator)[:count]
        groups.append(signals(logits.cpu()[chosen], labels.cpu()[chosen]))
    inside, outside = groups
    pairs = {name: (inside[name], outside[name]) for name in inside}
    joined = [torch.stack(list(group.values()), dim=1) for group in groups]
    pairs["all four"] = held_out_scores(joined[0], joined[1], seed=seed)
    return {name: advantage(*pair, seed=seed) for name, pair in pairs.items()}


def advantage(members: Tensor, others: Tensor, *, seed: int = 0) -> Advantage:
    """Of one score, [m] and [n]. The interval of the AUC, folded at 0.5.

    >>> advantage(torch.zeros(5), torch.zeros(5)).value
    0.0
    """
    value = float(auc(members, others))
    low, high = (bound - 0.5 for bound in bootstrap((members, others), auc, seed=seed))
    nearest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    return Advantage(abs(value - 0.5), (nearest, max(abs(low), abs(high))), value)
