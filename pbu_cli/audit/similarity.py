"""How alike two networks are on the same images: in their predictions, and inside.

Index letters: n images, c classes, d features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

JACKKNIFE_GROUPS = 10


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two networks' predicted distributions, in bits, by image.

    logits, reference: [n, c] -> [n]. JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2 with
    m = (p + q) / 2. It is 0 for equal distributions and 1 for distributions that share no class.
    Source: Lin, "Divergence measures based on the Shannon entropy", 1991.

    >>> divergence(torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.0, 0.0]]))
    tensor([0.3113], dtype=torch.float64)
    """
    p, q = (z.double().softmax(dim=1) for z in (logits, reference))
    middle = (p + q) / 2
    return (_kl_in_bits(p, middle) + _kl_in_bits(q, middle)) / 2


def effective_classes(p: Tensor) -> Tensor:
    """How many classes the images spread over: exp of the entropy of the mean distribution, 1 to c.

    p: probabilities, [..., n, c]; they are averaged over the images first. The result is 1 where
    every image gets the same class, 2 where half of the images get one class and half another, and
    also 2 where every image gets both classes with probability 0.5.

    >>> effective_classes(torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    tensor(2.)
    """
    entropies: Tensor = torch.special.entr(p.mean(dim=-2))
    return entropies.sum(dim=-1).exp()


def gram(x: Tensor) -> Tensor:
    """Products of the centred features of every pair of images: [n, d] -> [n, n], float64."""
    centred = x.double() - x.double().mean(dim=0)
    return centred @ centred.T


def cka_of_grams(k: Tensor, m: Tensor) -> tuple[float, tuple[float, float]]:
    """Linear CKA of two networks' features on the same n images, and its 95 % interval.

    k, m: the matrices [n, n] that `gram` makes of the features x [n, d] and y [n, e].

    CKA = HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)). It is 1 for features that are equal up to
    rotation, scale and shift. HSIC is the unbiased estimate of Song et al., "Feature selection via
    dependence maximization", JMLR 2012, eq. 5, because the biased one approaches 1 for unrelated
    features once d exceeds n. The unbiased one may be negative around 0. The result is NaN for
    constant features, and for fewer than ten images. The interval is a jackknife over up to ten
    groups of images. Sources: Kornblith et al. 2019; Nguyen et al. 2021.

    >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> round(cka_of_grams(gram(x), gram(-2 * x.flip(1) + 1))[0], 4)
    1.0
    """
    groups = min(JACKKNIFE_GROUPS, len(k) // 5)
    if groups < 2:
        return math.nan, (math.nan, math.nan)
    value = _cka(k, m)
    error = _jackknife_error(_without_each_group(k, m, groups))
    return value, (max(-1.0, value - 1.96 * error), min(1.0, value + 1.96 * error))


def representation_unlearning_score(
    forget: tuple[Tensor, Tensor], retain: tuple[Tensor, Tensor], *, to_original: bool
) -> tuple[float, tuple[float, float]]:
    """RUS: the harmonic mean of forgetting and retention, 0 to 1, and its 95 % interval.

    forget, retain: the matrices [n, n] that `gram` makes of the input of the head, of this network
    and of the network that it is compared with, on forget and on retained images. Retention is the
    CKA of the two on retained images. Forgetting is the CKA on forget images where the other
    network was retrained, and 1 minus it where the other is the original (`to_original`). So the
    original has 0 and the retrained network 1 with itself. CKA below 0 counts as 0. The result is
    NaN where CKA is, and for fewer than ten images of either kind. The interval is a jackknife over
    groups of images, of both kinds together.

    Source: Le et al., "POUR: a provably optimal method for unlearning representations via neural
    collapse", CVPR 2026, arXiv 2511.19339, which uses the biased CKA.

    >>> x, y = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))
    >>> same = gram(x), gram(3 * x)
    >>> round(representation_unlearning_score(same, same, to_original=False)[0], 4)
    1.0
    >>> round(representation_unlearning_score(same, same, to_original=True)[0], 4)
    0.0
    """
    groups = min(JACKKNIFE_GROUPS, len(forget[0]) // 5, len(retain[0]) // 5)
    if groups < 2:
        return math.nan, (math.nan, math.nan)

    def score(on_forget: float, on_retained: float) -> float:
        if math.isnan(on_forget) or math.isnan(on_retained):
            return math.nan
        forgetting = 1 - max(on_forget, 0.0) if to_original else max(on_forget, 0.0)
        total = forgetting + max(on_retained, 0.0)
        return 2 * forgetting * max(on_retained, 0.0) / total if total > 0 else 0.0

    value = score(_cka(*forget), _cka(*retain))
    sides = (_without_each_group(*side, groups) for side in (forget, retain))
    error = _jackknife_error([score(*pair) for pair in zip(*sides, strict=True)])
    return value, (max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error))


def _without_each_group(k: Tensor, m: Tensor, groups: int) -> list[float]:
    """CKA without the images of each group in turn; image i is in group i modulo `groups`."""
    found = []
    for group in range(groups):
        kept = torch.arange(len(k)) % groups != group
        found.append(_cka(k[kept][:, kept], m[kept][:, kept]))
    return found


def _jackknife_error(without_group: list[float]) -> float:
    """The standard error of a value, from the values without each group."""
    values, groups = torch.tensor(without_group).double(), len(without_group)
    return math.sqrt((groups - 1) / groups * (values - values.mean()).square().sum().item())


def _kl_in_bits(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p / q).log2(), 0.0).sum(dim=1)


def _cka(k: Tensor, m: Tensor) -> float:
    own = _hsic(k, k) * _hsic(m, m)
    return _hsic(k, m) / math.sqrt(own) if own > 0 else math.nan


def _hsic(k: Tensor, m: Tensor) -> float:
    """(sum_ij K_ij M_ij + sum K sum M / ((n-1)(n-2)) - 2/(n-2) sum_i K_i. M_i.) / (n (n-3)).

    The diagonals of K and M are set to zero first. A shift of the features does not change it.
    """
    n = len(k)
    k, m = (square - torch.diag(square.diagonal()) for square in (k, m))
    rows = k.sum(dim=1) @ m.sum(dim=1)
    product = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return float((k * m).sum() + product - 2 * rows / (n - 2)) / (n * (n - 3))
