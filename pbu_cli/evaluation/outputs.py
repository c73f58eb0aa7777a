"""What a network computes on the images of an evaluation, and the two controls made from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from pbu_cli.evaluation import metrics


@dataclass(frozen=True)
class Answers:
    """A network's logits [n, c] on the forget images and, where given, on retained ones; for an
    audit also what goes into its head, [n, d]."""

    forget: Tensor
    retain: Tensor | None = None
    forget_features: Tensor | None = None
    retain_features: Tensor | None = None


def head_masked(answers: Answers, forgotten: Tensor) -> Answers:
    """The control: the same network with the forgotten logits at minus infinity."""
    retain = answers.retain
    return replace(
        answers,
        forget=metrics.head_mask(answers.forget, forgotten),
        retain=None if retain is None else metrics.head_mask(retain, forgotten),
    )


def row_shifted(answers: Answers, forgotten: Tensor, shift: Tensor) -> Answers:
    """The control of an audit: the same network with one row of its head moved."""
    retain, inside = answers.retain, answers.retain_features
    assert answers.forget_features is not None
    return replace(
        answers,
        forget=metrics.shift_rows(answers.forget, answers.forget_features, forgotten, shift),
        retain=None
        if retain is None or inside is None
        else metrics.shift_rows(retain, inside, forgotten, shift),
    )
