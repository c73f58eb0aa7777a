"""Which parameters train, for every classifier of torchvision and for networks of one's own."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import list_models

from pbu_cli.errors import InvalidUsage
from pbu_cli.models.layer_order import Layout
from pbu_cli.models.parameter_groups import LAST_STAGES, blocks, layout_of, trained_parameters
from pbu_cli.models.sources.torchvision_build import build
from pbu_cli.models.sources.torchvision_registry import Architecture
from tests.networks.cifar_resnet import resnet20

NAMES = list_models(module=torchvision.models)
# Where the order of execution and the table differ, and in how many of the parameters. The table
# stays as it is, so that results stay as they are.
DELIBERATE = {
    # The table has the last of the two kinds of blocks at the last resolution, the order has both.
    "efficientnet_b": 0.51,
    "efficientnet_v2_[ml]": 0.47,
    # The table counts the norm before the last layer as the head.
    "convnext": 1e-4,
    # A block with branches at two resolutions, of a class that occurs once.
    "inception_v3": 0.08,
    # The table has three blocks, the order those after the last pooling: one or four.
    "squeezenet": 0.3,
    # The order has the layer that halves the resolution as well.
    "swin_[bst]": 0.05,
}


def image_size(name: str) -> int:
    if name.startswith(("vit", "maxvit")):
        return 224
    return 96 if name in ("inception_v3", "alexnet") else 64


def own_layout(model: nn.Module) -> Layout:
    return layout_of(model.eval(), None, torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("name", NAMES)
def test_every_family_has_a_head_and_a_last_stage_of_a_fair_size(name: str) -> None:
    size = 224 if name.startswith(("vit", "maxvit")) else None
    # RegNet computes its widths with tensors. All others need no memory.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = build(Architecture(name, num_classes=7, image_size=size)).eval().to("meta")
    black = torch.zeros(2, 3, image_size(name), image_size(name), device="meta")
    layout, found = layout_of(model, name, black), layout_of(model, None, black)
    last, head = trained_parameters(model, layout, "last")
    only, same = trained_parameters(model, layout, "head")
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    assert head == only == same == list(layout.head)
    assert 0 < len(head) < len(last) < len(sizes)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    assert any(shapes[n][0] == 7 for n in head)
    share = sum(sizes[n] for n in last) / sum(sizes.values())
    assert 0.1 < share < 0.97, share
    assert trained_parameters(model, layout, "stage") == ([n for n in last if n not in head], [])
    everything, _ = trained_parameters(model, layout, "all")
    assert everything == list(sizes)
    # The order of execution finds the same as the table.
    assert found.head_layer == layout.head_layer
    different = set(found.stage) ^ set(layout.stage)
    changed = sum(sizes[n] for n in different) / sum(sizes.values())
    allowed = [most for start, most in DELIBERATE.items() if re.match(start, name)]
    assert changed <= max(allowed, default=0), sorted(different)
    assert bool(different) == bool(allowed)
    assert bool(set(found.head) ^ set(layout.head)) == name.startswith("convnext")


def test_every_network_of_torchvision_is_in_the_table() -> None:
    assert all(any(re.fullmatch(family, name) for family in LAST_STAGES) for name in NAMES)


def test_a_network_of_ones_own_is_read_by_the_order_of_its_layers() -> None:
    last, head = trained_parameters(resnet20(), own_layout(resnet20()), "last")
    assert head == ["linear.weight", "linear.bias"]
    assert all(name.startswith(("layer3.", "linear.")) for name in last)
    assert len(last) == 6 * 3 + 2


def test_a_network_that_is_all_head_trains_that() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    assert trained_parameters(model, own_layout(model), "stage")[0] == ["1.weight", "1.bias"]


def test_a_pattern_is_searched_for_in_the_names() -> None:
    model = resnet20()
    names, head = trained_parameters(model, own_layout(model), r"\.bn2\.weight$|bias$")
    assert head == ["linear.bias"]
    assert all(name.endswith(("bn2.weight", "bias")) for name in names)


@pytest.mark.parametrize("layers", ["layer9", "(", ""])
def test_a_pattern_that_matches_nothing_or_is_none_is_refused(layers: str) -> None:
    with pytest.raises(InvalidUsage, match="--layers"):
        trained_parameters(resnet20(), Layout((), (), None), layers)


def test_blocks_in_lists_are_blocks() -> None:
    """A list is never called, so that it has no output."""
    model = nn.Module()
    model.stem, model.steps = nn.Linear(9, 9), nn.ModuleList(nn.Linear(9, 9) for _ in range(2))
    assert list(blocks(model)) == ["stem", "steps.0", "steps.1"]
