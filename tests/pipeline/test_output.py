"""The tensors of the output file."""

from __future__ import annotations

import torch

from pbu_cli.pipeline.output import _in_stored_dtype


def test_numbers_that_did_not_move_keep_the_digits_that_float32_does_not_hold() -> None:
    stored = torch.tensor([0.1, 0.2, 1 / 3], dtype=torch.float64)
    now = stored.float()
    now[1] = 0.5
    found = _in_stored_dtype(now, stored)
    assert found.dtype == torch.float64
    assert found.tolist() == [0.1, 0.5, 1 / 3]
