"""A description cannot ask for a network that its file could not fill."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pbu_cli.errors import CheckpointError
from pbu_cli.models.sources.construction import WeightsOnMeta, allocate, bounded, without_caches


def test_weights_take_memory_only_when_they_are_allocated() -> None:
    with WeightsOnMeta():
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert model[0].weight.is_meta
    allocate(model)
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_a_network_that_outgrows_its_file_is_refused_while_it_is_built() -> None:
    with pytest.raises(CheckpointError, match="the file has 4"), bounded("x", 4, 1000):
        nn.Sequential(*(nn.Linear(1, 1) for _ in range(10**9)))
    with (
        pytest.raises(CheckpointError, match="numbers"),
        WeightsOnMeta(),
        bounded("x", 4, 1000),
    ):
        nn.Linear(1 << 20, 1 << 20)
    with bounded("x", 4, 1000):  # as large as the file: fine, and the hook above is gone
        nn.Linear(10, 10)


def test_biases_follow_their_parameters_in_eval_mode() -> None:
    """LeViT keeps the biases of the first pass, so that unlearning them would change nothing."""
    timm = pytest.importorskip("timm")
    model = timm.create_model("levit_128s", num_classes=5).eval()
    without_caches(model)
    model.to(memory_format=torch.channels_last)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bn.weight"):
                parameter.fill_(1.0)  # timm begins with 0, so that a block does nothing
        before = model(images)
        for name, parameter in model.named_parameters():
            if name.endswith("attention_biases"):
                parameter += torch.randn_like(parameter)
        assert not torch.allclose(model(images), before)
