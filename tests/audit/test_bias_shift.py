"""The best shift of the forgotten logits against every shift."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pbu_cli.audit.bias_shift import best_bias


def every_bias(forget: Any, retain: Any, forgotten: Any, floor: Any) -> Any:
    """The oracle: try shifts between any two at which a prediction changes."""
    shifts = torch.linspace(-40, 40, 4001)
    best = math.nan
    for t in shifts.tolist():
        shift = t * forgotten.float()
        a_df, a_dr = (
            100 * ((z + shift).argmax(1) == labels).double().mean().item()
            for z, labels in (forget, retain)
        )
        if a_dr >= floor - 1e-9 and not best >= a_df:
            best = a_df
    return best


@pytest.mark.parametrize("floor", [0.0, 20.0, 45.0, 60.0, 99.0])
@pytest.mark.parametrize("classes", [1, 2])
def test_the_best_bias_is_the_best_of_all_biases(floor: float, classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    forgotten = torch.arange(5) < classes
    forget = 3 * torch.randn(60, 5, generator=generator), torch.arange(60) % classes
    retain = 3 * torch.randn(80, 5, generator=generator), classes + torch.arange(80) % (5 - classes)
    retain[0][range(80), retain[1]] += 2
    found, expected = (f(forget, retain, forgotten, floor) for f in (best_bias, every_bias))
    assert found == pytest.approx(expected, nan_ok=True)


def test_logits_that_are_not_finite_give_nan() -> None:
    forgotten = torch.tensor([True, False, False])
    broken = torch.full((4, 3), math.nan), torch.zeros(4, dtype=torch.long)
    finite = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
    assert math.isnan(best_bias(broken, finite, forgotten, 0.0))
    assert math.isnan(best_bias(finite, broken, forgotten, 0.0))
