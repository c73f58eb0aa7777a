"""Networks for a data set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pbu_cli.benchmark.networks import choose_network
from pbu_cli.errors import InvalidUsage
from pbu_cli.models.network import load_tensors
from pbu_cli.models.sources.torchvision_build import build


def test_the_same_seed_is_the_same_network_and_leaves_the_random_state_alone() -> None:
    network = choose_network("resnet18", None, 10, 1, (28, 28))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = (
        network.build_untrained(seed).get_parameter("fc.weight") for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("channels", "size", "stem", "kernel"),
    [(1, 28, "auto", 7), (3, 32, "auto", 3), (3, 96, "auto", 7), (3, 32, "usual", 7),
     (1, 28, "small", 3)],
)  # fmt: skip
def test_the_stem_of_a_resnet(channels: int, size: int, stem: str, kernel: int) -> None:
    network = choose_network("resnet18", None, 10, channels, (size, size), stem=stem)
    weight = network.build_untrained(0).get_parameter("conv1.weight")
    assert weight.shape[2:] == (kernel, kernel)
    assert ("3x3 stem" in network.description) == (kernel == 3)


@pytest.mark.parametrize("model", ["densenet121", "convnext_tiny", "vit_b_16"])
def test_images_too_small_for_a_network_are_enlarged(model: str) -> None:
    network = choose_network(model, None, 10, 1, (28, 28))
    assert network.size == (32, 32)
    assert network.build_untrained(0)(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_a_size_that_the_user_fixed_is_kept_or_refused() -> None:
    with pytest.raises(InvalidUsage, match="pass another --size"):
        choose_network("densenet121", None, 10, 1, (28, 28), fixed_size=True)


def test_a_fresh_network_has_weights_where_a_built_one_has_memory_for_them() -> None:
    untrained = choose_network("mobilenet_v3_small", None, 5, 3, (32, 32)).build_untrained(0)
    from pbu_cli.models.sources.torchvision_registry import Architecture

    built = build(Architecture("mobilenet_v3_small", 5, 3))
    load_tensors(built, untrained.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(untrained(x), built(x))
    assert all(t.isfinite().all() for t in untrained.state_dict().values())


def test_the_users_own_function(tmp_path: Path) -> None:
    source = tmp_path / "own.py"
    source.write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))\n"
    )
    network = choose_network("resnet34", f"{source}:net", 3, 1, (4, 4))
    assert network.name == "net"
    one, again = (network.build_untrained(2).get_parameter("1.weight") for _ in range(2))
    assert torch.equal(one, again)
    before = network.identity
    source.write_text(source.read_text() + "# changed\n")
    assert choose_network("resnet34", f"{source}:net", 3, 1, (4, 4)).identity != before
    with pytest.raises(InvalidUsage, match=r"expected \[2, 7\]"):
        choose_network("resnet34", f"{source}:net", 7, 1, (4, 4))


def test_names_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidUsage, match="a torchvision classifier such as resnet34"):
        choose_network("resnet35", None, 10, 3, (32, 32))
    with pytest.raises(InvalidUsage, match="only ResNets"):
        choose_network("vgg11", None, 10, 3, (32, 32), stem="small")
