"""What a network computes on the images of an evaluation, and the two controls made from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from pbu_cli.evaluation import metrics


@dataclass(frozen=True)
class NetworkOutputs:
    """The logits of one network and, for an audit, the input of its head.

    forget_logits: on the forget images, [n, c]. retain_logits: on the retained images, [m, c], or
    None where no retained images were given. forget_features, retain_features: the input of the
    head for the same images, [n, d] and [m, d]; None outside an audit.
    """

    forget_logits: Tensor
    retain_logits: Tensor | None = None
    forget_features: Tensor | None = None
    retain_features: Tensor | None = None


def head_masked(outputs: NetworkOutputs, forgotten: Tensor) -> NetworkOutputs:
    """The head mask control: the same network with the forgotten logits at minus infinity."""
    forget, retain = outputs.forget_logits, outputs.retain_logits
    return replace(
        outputs,
        forget_logits=metrics.head_mask(forget, forgotten),
        retain_logits=None if retain is None else metrics.head_mask(retain, forgotten),
    )


def row_shifted(outputs: NetworkOutputs, forgotten: Tensor, shift: Tensor) -> NetworkOutputs:
    """The row shift control: the same network with the forgotten rows of its head moved by `shift`.

    The outputs have to hold the features, which only an audit reads.
    """

    def shifted(logits: Tensor | None, features: Tensor | None) -> Tensor | None:
        if logits is None or features is None:
            return None
        return metrics.shift_rows(logits, features, forgotten, shift)

    forget_logits = shifted(outputs.forget_logits, outputs.forget_features)
    assert forget_logits is not None
    return replace(
        outputs,
        forget_logits=forget_logits,
        retain_logits=shifted(outputs.retain_logits, outputs.retain_features),
    )
