"""Similarity of networks against its definitions, written out in full."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pbu_cli.audit.similarity import (
    cka_of_grams,
    divergence,
    effective_classes,
    gram,
    representation_unlearning_score,
)


def test_divergence_is_its_formula_in_bits() -> None:
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).double()
    w = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)).double()
    found = divergence(z, w)
    for n in range(8):
        p, q = z[n].softmax(0).tolist(), w[n].softmax(0).tolist()
        expected = 0.0
        for a, b in zip(p, q, strict=True):
            m = (a + b) / 2
            expected += a * math.log2(a / m) / 2 + b * math.log2(b / m) / 2
        assert found[n].item() == pytest.approx(expected, abs=1e-12)
    assert torch.allclose(found, divergence(w, z))


def test_divergence_is_between_0_and_1_bit() -> None:
    certain = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    assert divergence(certain, certain).tolist() == [0, 0]
    assert divergence(certain, certain.flip(0)).tolist() == [1, 1]


def test_effective_classes_of_uniform_distributions_is_the_number_of_classes() -> None:
    assert effective_classes(torch.full((3, 7), 1 / 7)).item() == pytest.approx(7)


def cka(x: Tensor, y: Any) -> Any:
    return cka_of_grams(gram(x), gram(y))


def hsic(x: Tensor, y: Any) -> Any:
    """The U-statistic itself: the mean of h over all ordered quadruples of different images.

    h = K_ij (L_ij + L_kl - 2 L_ik), Song et al. 2012; their eq. 5 computes this mean.
    """
    k, m, n = x @ x.T, y @ y.T, len(x)
    total = 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
    return total / math.perm(n, 4)


def test_cka_is_the_ratio_of_its_u_statistics() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(10, 3, generator=generator).double()
    y = x[:, :2] + torch.randn(10, 2, generator=generator).double()
    expected = hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    assert cka(x, y)[0] == pytest.approx(expected, rel=1e-9)


def test_cka_does_not_depend_on_rotation_scale_and_shift() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(60, 4, generator=generator).double()
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator).double()).Q
    assert cka(x, 7 * x @ rotation + 3)[0] == pytest.approx(1)


def test_cka_of_unrelated_features_is_near_0_however_many_there_are() -> None:
    generator = torch.Generator().manual_seed(6)
    value, (low, high) = cka(*(torch.randn(100, 3000, generator=generator) for _ in range(2)))
    assert abs(value) < 0.03
    assert low < 0 < high


def test_cka_of_few_images_and_of_constant_features_is_unknown() -> None:
    assert math.isnan(cka(torch.randn(3, 2), torch.randn(3, 2))[0])
    assert math.isnan(cka(torch.ones(30, 2), torch.randn(30, 2))[0])
    assert gram(torch.ones(3, 2)).abs().max() == 0


def related(noise: float, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The Gram matrices of features and of the same features with noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator).double()
    return gram(x), gram(x + noise * torch.randn(count, 6, generator=generator).double())


@pytest.mark.parametrize("to_original", [True, False])
def test_rus_is_the_harmonic_mean_of_forgetting_and_retention(to_original: bool) -> None:
    forget, retain = related(1.0, 60, 0), related(0.3, 80, 1)
    value, (low, high) = representation_unlearning_score(forget, retain, to_original=to_original)
    on_forget, on_retained = cka_of_grams(*forget)[0], cka_of_grams(*retain)[0]
    forgetting = 1 - on_forget if to_original else on_forget
    assert value == pytest.approx(1 / ((1 / forgetting + 1 / on_retained) / 2))
    assert 0 <= low < value < high <= 1


def test_the_interval_of_rus_is_a_jackknife_over_both_kinds_of_images() -> None:
    forget, retain = related(1.0, 50, 2), related(0.5, 50, 3)
    found = representation_unlearning_score(forget, retain, to_original=False)
    without = []
    for group in range(10):
        kept = [i for i in range(50) if i % 10 != group]
        smaller = [(k[kept][:, kept], m[kept][:, kept]) for k, m in (forget, retain)]
        without.append(
            representation_unlearning_score(smaller[0], smaller[1], to_original=False)[0]
        )
    mean = sum(without) / 10
    error = math.sqrt(0.9 * sum((one - mean) ** 2 for one in without))
    assert found[1][0] == pytest.approx(found[0] - 1.96 * error)
    assert found[1][1] == pytest.approx(min(1, found[0] + 1.96 * error))


def test_rus_of_unrelated_constant_or_few_features() -> None:
    generator = torch.Generator().manual_seed(6)
    unrelated = tuple(gram(torch.randn(100, 500, generator=generator)) for _ in range(2))
    pair = unrelated[0], unrelated[1]
    value, (low, high) = representation_unlearning_score(pair, pair, to_original=False)
    assert 0 <= low <= value < 0.1
    assert high < 0.3
    constant = gram(torch.ones(30, 2)), gram(torch.ones(30, 2))
    some = related(0.1, 30, 0)
    assert math.isnan(representation_unlearning_score(constant, some, to_original=True)[0])
    few = related(0.1, 9, 0)
    assert math.isnan(representation_unlearning_score(few, some, to_original=True)[0])
