"""How alike two networks are on the same images: in what they answer, and stage by stage inside.

Index letters: n images, c classes, d features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pbu_cli.evaluation.statistics import bootstrap

GROUPS = 10  # of the jackknife


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two networks' answers, by image, bits. [n, c], [n, c] -> [n].

    JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2: 0 of equal answers, 1 of
    answers that share no class. Source: Lin, "Divergence measures based on the Shannon entropy",
    1991.

    >>> divergence(torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.0, 0.0]]))
    tensor([0.3113], dtype=torch.float64)
    """
    p, q = (z.double().softmax(dim=1) for z in (logits, reference))
    middle = (p + q) / 2
    return (_bits(p, middle) + _bits(q, middle)) / 2


def effective_classes(p: Tensor) -> Tensor:
    """exp of the entropy of the mean answer, 1 to c: how widely the images spread. [..., n, c].

    p are probabilities; their mean over the images is what has the entropy. 1 where every image
    gets one and the same class, 2 where half get one and half another, and 2 also where every image
    gets both by halves.

    >>> effective_classes(torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    tensor(2.)
    """
    entropies: Tensor = torch.special.entr(p.mean(dim=-2))
    return entropies.sum(dim=-1).exp()


def cka(x: Tensor, y: Tensor) -> tuple[float, tuple[float, float]]:
    """Linear CKA of two networks' features on the same n images, and its 95 % interval.

    x [n, d], y [n, e]. CKA = HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)), 1 for features equal up to
    rotation, scale and shift; with the unbiased HSIC of Song et al., "Feature selection via
    dependence maximization", JMLR 2012, eq. 5, since the biased one nears 1 for unrelated features
    once d exceeds n. Around 0 it may be negative; NaN of constant features, and of fewer than ten
    images. Interval: jackknife over up to ten groups of images. Sources: Kornblith et al. 2019;
    Nguyen et al. 2021.

    >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> round(cka(x, -2 * x.flip(1) + 1)[0], 4)
    1.0
    """
    return cka_of_grams(gram(x), gram(y))


def gram(x: Tensor) -> Tensor:
    """Products of the features of every pair of images, centred: [n, d] -> [n, n], float64."""
    centred = x.double() - x.double().mean(dim=0)
    return centred @ centred.T


def cka_of_grams(k: Tensor, m: Tensor) -> tuple[float, tuple[float, float]]:
    """`cka` from two matrices of `gram`."""
    n = len(k)
    count = min(GROUPS, n // 5)
    if count < 2:
        return math.nan, (math.nan, math.nan)
    value = _cka(k, m)
    without = []
    for group in range(count):
        kept = torch.arange(n) % count != group
        without.append(_cka(k[kept][:, kept], m[kept][:, kept]))
    spread = torch.tensor(without).double()
    error = math.sqrt((count - 1) / count * (spread - spread.mean()).square().sum().item())
    return value, (max(-1.0, value - 1.96 * error), min(1.0, value + 1.96 * error))


def mean_interval(values: Tensor, *, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Mean of one number per image, [n], and its 95 % bootstrap interval."""
    return values.mean().item(), bootstrap((values,), lambda v: v.mean(dim=-1), seed=seed)


def _bits(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p / q).log2(), 0.0).sum(dim=1)


def _cka(k: Tensor, m: Tensor) -> float:
    own = _hsic(k, k) * _hsic(m, m)
    return _hsic(k, m) / math.sqrt(own) if own > 0 else math.nan


def _hsic(k: Tensor, m: Tensor) -> float:
    """(sum_ij K_ij M_ij + sum K sum M / ((n-1)(n-2)) - 2/(n-2) sum_i K_i. M_i.) / (n (n-3)), with
    the diagonals of K and M at zero. Shifting the features changes nothing in it."""
    n = len(k)
    k, m = (square - torch.diag(square.diagonal()) for square in (k, m))
    rows = k.sum(dim=1) @ m.sum(dim=1)
    whole = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return float((k * m).sum() + whole - 2 * rows / (n - 2)) / (n * (n - 3))
