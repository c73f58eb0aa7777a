"""From a checkpoint to a loaded network, by every door."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from pbu_cli.checkpoint import Checkpoint, read
from pbu_cli.description import Description
from pbu_cli.errors import CheckpointError, InvalidUsage
from pbu_cli.network import load_network
from tests.cifar_resnet import resnet20

HERE = Path(__file__).parent


def checkpoint(module: torch.nn.Module) -> Checkpoint:
    return Checkpoint(Path("m.safetensors"), dict(module.state_dict()), "", {})


def described(architecture: str) -> Description:
    return Description(architecture, sources={"architecture": "config.json"})


@pytest.fixture(scope="module")
def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return resnet18(num_classes=5).eval()


@pytest.mark.parametrize("door", ["tensors", "flag", "config"])
def test_a_torchvision_network_by_every_door(small, door):
    description = described("resnet18") if door == "config" else Description()
    network = load_network(checkpoint(small), "resnet18" if door == "flag" else None, description)
    assert (network.builder, network.num_classes, network.channels) == ("resnet18", 5, 3)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(network.module(x), small(x))


@pytest.mark.parametrize("place", [f"{HERE}/cifar_resnet.py", "tests.cifar_resnet"])
def test_a_network_of_ones_own_by_file_and_by_module(place):
    module = resnet20().eval()
    network = load_network(checkpoint(module), f"{place}:resnet20", Description())
    assert (network.builder, network.num_classes, network.channels) == (None, 10, 3)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.module(x), module(x))


class Wrapped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = resnet20()

    def forward(self, x):
        return self.model(x)


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "model."])
def test_names_of_ones_own_module_may_begin_like_those_of_a_wrapper(tmp_path, prefix):
    """All names begin with `model.`, which is a prefix to be taken off other checkpoints."""
    tensors = {prefix + n: t for n, t in Wrapped().state_dict().items()}
    torch.save(tensors, tmp_path / "m.pt")
    stored = read(tmp_path / "m.pt")
    network = load_network(stored, f"{__name__}:Wrapped", Description())
    assert network.prefix == prefix
    under = stored.under(network.prefix)
    assert under.tensors.keys() == network.module.state_dict().keys()
    assert under.stored_names(under.tensors).keys() == tensors.keys()


def test_counters_that_old_files_lack_become_zero():
    tensors = {n: t for n, t in resnet20().state_dict().items() if "num_batches" not in n}
    old = Checkpoint(Path("m"), tensors, "", {})
    load_network(old, "tests.cifar_resnet:resnet20", Description())


def test_the_wrong_network_of_ones_own_is_told_by_its_tensors():
    with pytest.raises(CheckpointError, match=r"layer1.3.conv1.weight is missing"):
        load_network(checkpoint(resnet20()), "tests.cifar_resnet:resnet32", Description())


@pytest.mark.parametrize(
    ("source", "name", "match"),
    [
        ("def f(): return 3", "f", "returned a int"),
        ("def f(x): return x", "f", "without arguments raised TypeError"),
        ("def f(: pass", "f", "SyntaxError"),
        ("1 / 0", "f", "ZeroDivisionError"),
        ("x = 1", "f", "no function f"),
        ("x = 1", "x", "no function x"),
    ],
)
def test_code_that_does_not_serve_is_one_line(tmp_path, small, source, name, match):
    (tmp_path / "own.py").write_text(source)
    with pytest.raises(InvalidUsage, match=match) as caught:
        load_network(checkpoint(small), f"{tmp_path / 'own.py'}:{name}", Description())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arch", ["no.py:f", "no.such.module:f", "../x:f", ":f", "a b:f"])
def test_code_that_is_not_there_is_one_line(small, arch):
    with pytest.raises(InvalidUsage, match="--arch"):
        load_network(checkpoint(small), arch, Description())


def test_a_config_cannot_make_pbu_import_anything(tmp_path, small, monkeypatch):
    (tmp_path / "evil.py").write_text("import sys; sys.evil_was_here = True\ndef f(): ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in (f"{tmp_path}/evil.py:f", "evil:f", "evil"):
        with pytest.raises(CheckpointError):
            load_network(checkpoint(small), None, described(name))
    assert not hasattr(sys, "evil_was_here")
