"""The anchors of a run: what memory does not hold and what has no plain head, before it is made."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from pbu_cli.errors import CheckpointError, PbuError
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.models.parameter_groups import layout_of
from pbu_cli.pipeline.anchors import check_anchors, make_anchors
from pbu_cli.pipeline.forget_set import build_forget_set
from pbu_cli.settings import DEFAULT
from tests.networks.unusual_heads import Lora


def test_anchors_that_memory_does_not_hold_are_refused_with_what_they_take(
    eights: UnlearningInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbu_cli.pipeline.anchors.affordable", lambda needed, device: needed < 1000)
    images, _ = build_forget_set(eights, replace(DEFAULT.schedule, mirror=0.0))
    with pytest.raises(PbuError, match=r"2048 anchors: take 0\.\d GiB.*--anchors"):
        make_anchors(eights, images, DEFAULT, lambda count: None)


def with_head(inputs: UnlearningInputs, change: Callable[[nn.Linear], object]) -> UnlearningInputs:
    """The same inputs for a copy of the network whose last layer is changed."""
    module = copy.deepcopy(inputs.loaded.network.module)
    changed = change(module.fc)  # type: ignore[arg-type]
    module.fc = changed if isinstance(changed, nn.Module) else module.fc
    return with_module(inputs, module)


def with_module(inputs: UnlearningInputs, module: nn.Module) -> UnlearningInputs:
    """The same inputs for another network."""
    black = torch.zeros(2, *inputs.images.pixels.shape[1:])
    layout = layout_of(module.eval(), None, black)
    network = replace(inputs.loaded.network, module=module, builder=None, layout=layout)
    return replace(inputs, loaded=replace(inputs.loaded, network=network))


class Scaled(nn.Linear):
    """A layer with a temperature."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 7


HEADS: dict[str, Callable[[nn.Linear], object]] = {
    "plain": lambda head: head,
    "old weight_norm": nn.utils.weight_norm,
    "weight_norm": parametrizations.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "pruned": lambda head: prune.l1_unstructured(head, "weight", amount=0.3),
    "scaled": Scaled,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", list(HEADS))
def test_a_row_that_stays_where_it_is_is_a_warning(eights: UnlearningInputs, kind: str) -> None:
    inputs = with_head(eights, HEADS[kind])
    warnings = check_anchors(inputs, DEFAULT)
    assert len(warnings) == (kind != "plain")
    assert all("fc: the row of the class in the last layer stays" in text for text in warnings)
    assert check_anchors(inputs, DEFAULT.adjusted(delta=0.0)) == []  # it is not to move


class Early(nn.Module):
    """The same network with its last layer defined first, and perhaps others that run after it."""

    def __init__(self, plain: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.fc, self.body, self.after = copy.deepcopy(plain.fc), copy.deepcopy(plain), after
        self.body.fc = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(self.body(x))
        return y + 0 * self.after(y)


def test_logits_of_several_layers_or_of_another_than_the_last_to_run_are_refused(
    eights: UnlearningInputs,
) -> None:
    with pytest.raises(CheckpointError, match=r"come from fc\.base and fc\.lora_B, and"):
        check_anchors(with_head(eights, Lora), DEFAULT)
    module, classes = eights.loaded.network.module, eights.loaded.network.num_classes
    early = with_module(eights, Early(module, nn.Identity()))
    assert check_anchors(replace(early, split_point=None), DEFAULT) == []
    early = with_module(eights, Early(module, nn.Linear(classes, classes)))
    with pytest.raises(CheckpointError, match=r"come from fc, and not from after alone"):
        check_anchors(replace(early, split_point=None), DEFAULT)
