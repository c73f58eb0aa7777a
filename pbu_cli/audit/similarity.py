"""How alike two networks are on the same images: in their predictions, and stage by stage inside.

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
    n = len(k)
    groups = min(JACKKNIFE_GROUPS, n // 5)
    if groups < 2:
        return math.nan, (math.nan, math.nan)
    value = _cka(k, m)
    without_group = []
    for group in range(groups):
        kept = torch.arange(n) % groups != group
        without_group.append(_cka(k[kept][:, kept], m[kept][:, kept]))
    values = torch.tensor(without_group).double()
    error = math.sqrt((groups - 1) / groups * (values - values.mean()).square().sum().item())
    return value, (max(-1.0, value - 1.96 * error), min(1.0, value + 1.96 * error))


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
