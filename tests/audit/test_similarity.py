"""Likeness of networks against its definitions, written out the long way."""

import itertools
import math

import pytest
import torch

from pbu_cli.audit.similarity import cka, divergence, effective_classes, gram, mean_interval


def test_divergence_is_its_formula_in_bits():
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).double()
    w = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)).double()
    found = divergence(z, w)
    for n in range(8):
        p, q = z[n].softmax(0).tolist(), w[n].softmax(0).tolist()
        wanted = 0.0
        for a, b in zip(p, q, strict=True):
            m = (a + b) / 2
            wanted += a * math.log2(a / m) / 2 + b * math.log2(b / m) / 2
        assert found[n].item() == pytest.approx(wanted, abs=1e-12)
    assert torch.allclose(found, divergence(w, z))


def test_divergence_runs_from_nought_to_one_bit():
    sure = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    assert divergence(sure, sure).tolist() == [0, 0]
    assert divergence(sure, sure.flip(0)).tolist() == [1, 1]


def test_effective_classes_of_all_answers_alike_is_their_number():
    assert effective_classes(torch.full((3, 7), 1 / 7)).item() == pytest.approx(7)


def hsic(x, y):
    """The U-statistic itself: h over all ordered quadruples of different images.

    h = K_ij (L_ij + L_kl - 2 L_ik), Song et al. 2012, the mean of which eq. 5 computes.
    """
    k, m, n = x @ x.T, y @ y.T, len(x)
    total = 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
    return total / math.perm(n, 4)


def test_cka_is_the_ratio_of_its_u_statistics():
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(10, 3, generator=generator).double()
    y = x[:, :2] + torch.randn(10, 2, generator=generator).double()
    wanted = hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    assert cka(x, y)[0] == pytest.approx(wanted, rel=1e-9)


def test_cka_does_not_see_rotation_scale_and_shift():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(60, 4, generator=generator).double()
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator).double()).Q
    assert cka(x, 7 * x @ turn + 3)[0] == pytest.approx(1)


def test_cka_of_unrelated_features_is_nothing_however_many_there_are():
    generator = torch.Generator().manual_seed(6)
    value, (low, high) = cka(*(torch.randn(100, 3000, generator=generator) for _ in range(2)))
    assert abs(value) < 0.03
    assert low < 0 < high


def test_cka_of_a_few_images_and_of_constant_features_is_unknown():
    assert math.isnan(cka(torch.randn(3, 2), torch.randn(3, 2))[0])
    assert math.isnan(cka(torch.ones(30, 2), torch.randn(30, 2))[0])
    assert gram(torch.ones(3, 2)).abs().max() == 0


def test_the_interval_of_a_mean_is_about_two_standard_errors():
    values = torch.randn(4000, generator=torch.Generator().manual_seed(7))
    mean, (low, high) = mean_interval(values)
    assert mean == pytest.approx(values.mean().item())
    assert (high - low) / 2 == pytest.approx(1.96 / math.sqrt(4000), rel=0.1)
