"""Which parameters train, for every classifier of torchvision and for networks of one's own."""

from __future__ import annotations

import pytest
import torchvision
from torch import nn
from torchvision.models import list_models

from pbu_cli.errors import InvalidUsage
from pbu_cli.models.build import build
from pbu_cli.models.parameter_groups import trained_parameters
from pbu_cli.models.registry import Architecture
from tests.networks.cifar_resnet import resnet20

NAMES = list_models(module=torchvision.models)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_has_a_head_and_a_last_stage_of_a_fair_size(name: str) -> None:
    size = 224 if name.startswith(("vit", "maxvit")) else None
    model = build(Architecture(name, num_classes=7, image_size=size))
    last, head = trained_parameters(model, name, "last")
    only, same = trained_parameters(model, name, "head")
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    assert head == only == same
    assert 0 < len(head) < len(last) < len(sizes)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    assert any(shapes[n][0] == 7 for n in head)
    share = sum(sizes[n] for n in last) / sum(sizes.values())
    assert 0.1 < share < 0.97, share
    assert trained_parameters(model, name, "stage") == ([n for n in last if n not in head], [])
    everything, _ = trained_parameters(model, name, "all")
    assert everything == list(sizes)


def test_a_network_of_ones_own_is_read_by_position() -> None:
    last, head = trained_parameters(resnet20(), None, "last")
    assert head == ["linear.weight", "linear.bias"]
    assert all(name.startswith(("layer3.", "linear.")) for name in last)
    assert len(last) == 6 * 3 + 2


def test_a_network_that_is_all_head_trains_that() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert trained_parameters(model, None, "stage")[0] == ["1.weight", "1.bias"]


def test_a_wrapper_around_the_network_is_opened() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
            self.dropout = nn.Dropout()
            self.head = nn.Linear(8, 2)

    last, head = trained_parameters(Wrapped(), None, "last")
    assert head == ["head.weight", "head.bias"]
    assert last[:2] == ["backbone.1.weight", "backbone.1.bias"]


def test_a_pattern_is_searched_for_in_the_names() -> None:
    names, head = trained_parameters(resnet20(), None, r"\.bn2\.weight$|bias$")
    assert head == ["linear.bias"]
    assert all(name.endswith(("bn2.weight", "bias")) for name in names)


@pytest.mark.parametrize("layers", ["layer9", "("])
def test_a_pattern_that_matches_nothing_or_is_none_is_refused(layers: str) -> None:
    with pytest.raises(InvalidUsage, match="--layers"):
        trained_parameters(resnet20(), None, layers)
