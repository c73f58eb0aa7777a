"""The prefix of a wrapper is taken off, and a network's own child is not mistaken for one."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import densenet121, mobilenet_v3_small, resnet18, vit_b_16

from pbu_cli.io.foreign.prefixes import MAX_PARTS, common_prefix, left_over


def sizes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.fixture(scope="module")
def resnet() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return sizes(resnet18(num_classes=10).state_dict())


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "backbone.", "net.", "encoder.", "student.", "timm_model.",
     "module.model.", "module._orig_mod.model.net."],
)  # fmt: skip
def test_any_prefix_that_all_names_share_is_found(
    resnet: dict[str, tuple[int, ...]], prefix: str
) -> None:
    assert common_prefix({prefix + name: size for name, size in resnet.items()}) == prefix


@pytest.mark.parametrize("build", [densenet121, mobilenet_v3_small, vit_b_16])
def test_a_child_that_holds_nearly_all_of_a_network_is_no_prefix(
    build: Callable[..., nn.Module],
) -> None:
    with torch.device("meta"):
        network = build(num_classes=2)
    assert common_prefix(sizes(network.state_dict())) == ""


@pytest.mark.parametrize(
    "beside",
    [
        {"criterion.weight": (10,)},
        {"n_averaged": ()},
        {"criterion.weight": (10,), "train_accuracy.total": (), "ema.decay": ()},
        {"mean": (1, 3, 1, 1), "std": (1, 3, 1, 1)},
    ],
)
def test_numbers_of_a_wrapper_are_left_over(
    resnet: dict[str, tuple[int, ...]], beside: dict[str, tuple[int, ...]]
) -> None:
    names = {f"model.{name}": size for name, size in resnet.items()} | beside
    assert common_prefix(names) == "model."
    assert left_over(list(names), "model.") == tuple(beside)


def test_an_averaged_model_is_read_as_the_model() -> None:
    state = AveragedModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))).state_dict()
    assert common_prefix(sizes(state)) == "module."


def test_a_weight_or_many_names_are_never_left_over(resnet: dict[str, tuple[int, ...]]) -> None:
    names = {f"model.{name}": size for name, size in resnet.items()}
    assert common_prefix({**names, "head.weight": (10, 3)}) == ""
    assert common_prefix({**names, **{f"b{k}.bias": (1,) for k in range(60)}}) == ""
    assert common_prefix({"a.weight": (4, 3), "b": ()}) == ""
    assert common_prefix({"weight": (4, 3)}) == ""


def test_a_long_chain_of_prefixes_takes_no_time() -> None:
    start = time.perf_counter()
    names = {f"{'module.' * 2000}{k}.weight": (3, 3) for k in range(2000)}
    assert common_prefix(names) == "module." * MAX_PARTS
    assert time.perf_counter() - start < 2
