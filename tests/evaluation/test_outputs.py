"""The outputs of the two controls."""

from __future__ import annotations

import torch

from pbu_cli.evaluation.outputs import NetworkOutputs, head_masked, row_shifted
from pbu_cli.evaluation.scores import score

FORGOTTEN = torch.tensor([False, True, False])


def test_a_masked_head_never_predicts_the_forgotten_class() -> None:
    forget = torch.tensor([[0.0, 9, 1], [9, 0, 1], [9, 0, 1], [0, 0, 9]])
    retain = torch.tensor([[9.0, 0, 0], [0, 0, 9], [0, 9, 0]])
    masked = head_masked(NetworkOutputs(forget, retain_logits=retain), FORGOTTEN)
    assert score("m", masked, torch.full((4,), 1), None).a_df == 0
    assert masked.retain_logits is not None
    assert (masked.retain_logits.argmax(1) != 1).all()
    assert head_masked(NetworkOutputs(forget), FORGOTTEN).retain_logits is None


def test_a_shifted_row_changes_the_forgotten_logit_alone_and_keeps_the_features() -> None:
    generator = torch.Generator().manual_seed(0)
    head, shift = torch.randn(3, 4, generator=generator), torch.randn(4, generator=generator)
    forget, retain = (torch.randn(n, 4, generator=generator) for n in (5, 7))
    shifted_head = head - FORGOTTEN[:, None] * shift
    outputs = NetworkOutputs(forget @ head.T, forget, None, retain @ head.T, retain)
    shifted = row_shifted(outputs, FORGOTTEN, shift)
    assert torch.allclose(shifted.forget_logits, forget @ shifted_head.T, atol=1e-5)
    assert shifted.retain_logits is not None
    assert torch.allclose(shifted.retain_logits, retain @ shifted_head.T, atol=1e-5)
    assert shifted.forget_features is forget
    without_retained = NetworkOutputs(forget @ head.T, forget)
    assert row_shifted(without_retained, FORGOTTEN, shift).retain_logits is None
