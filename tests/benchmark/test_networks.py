"""Networks for a data set."""

from __future__ import annotations

import pytest
import torch

from pbu_cli.benchmark.networks import choose
from pbu_cli.errors import InvalidUsage
from pbu_cli.models.build import build, load


def test_the_same_seed_is_the_same_network_and_leaves_the_random_state_alone():
    candidate = choose("resnet18", None, 10, 1, (28, 28))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = (candidate.fresh(seed).fc.weight for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("channels", "size", "stem", "kernel"),
    [(1, 28, "auto", 7), (3, 32, "auto", 3), (3, 96, "auto", 7), (3, 32, "usual", 7),
     (1, 28, "small", 3)],
)  # fmt: skip
def test_the_stem_of_a_resnet(channels, size, stem, kernel):
    candidate = choose("resnet18", None, 10, channels, (size, size), stem=stem)
    assert candidate.fresh(0).conv1.kernel_size == (kernel, kernel)
    assert ("3x3 stem" in candidate.shown) == (kernel == 3)


@pytest.mark.parametrize("model", ["densenet121", "convnext_tiny", "vit_b_16"])
def test_images_too_small_for_a_network_are_enlarged(model):
    candidate = choose(model, None, 10, 1, (28, 28))
    assert candidate.size == (32, 32)
    assert candidate.fresh(0)(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_a_size_that_the_user_fixed_is_kept_or_refused():
    with pytest.raises(InvalidUsage, match="pass another --size"):
        choose("densenet121", None, 10, 1, (28, 28), fixed=True)


def test_a_fresh_network_has_weights_where_a_built_one_has_memory_for_them():
    fresh = choose("mobilenet_v3_small", None, 5, 3, (32, 32)).fresh(0)
    from pbu_cli.models.registry import Architecture

    built = build(Architecture("mobilenet_v3_small", 5, 3))
    load(built, fresh.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(fresh(x), built(x))
    assert all(t.isfinite().all() for t in fresh.state_dict().values())


def test_the_users_own_function(tmp_path):
    source = tmp_path / "own.py"
    source.write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))\n"
    )
    candidate = choose("resnet34", f"{source}:net", 3, 1, (4, 4))
    assert candidate.name == "net"
    assert torch.equal(candidate.fresh(2)[1].weight, candidate.fresh(2)[1].weight)
    before = candidate.digest
    source.write_text(source.read_text() + "# changed\n")
    assert choose("resnet34", f"{source}:net", 3, 1, (4, 4)).digest != before
    with pytest.raises(InvalidUsage, match=r"expected \[2, 7\]"):
        choose("resnet34", f"{source}:net", 7, 1, (4, 4))


def test_names_that_are_none_are_refused():
    with pytest.raises(InvalidUsage, match="a torchvision classifier such as resnet34"):
        choose("resnet35", None, 10, 3, (32, 32))
    with pytest.raises(InvalidUsage, match="only ResNets"):
        choose("vgg11", None, 10, 3, (32, 32), stem="small")
