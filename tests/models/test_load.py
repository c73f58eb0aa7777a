"""From a checkpoint to a loaded network, by every door."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18, squeezenet1_1

from pbu_cli.errors import CheckpointError, ImageError, InvalidUsage
from pbu_cli.io.checkpoint import Checkpoint, read
from pbu_cli.models.layer_order import Layout
from pbu_cli.models.load import load_network
from pbu_cli.models.model_config import Description
from pbu_cli.models.network import Network, try_out
from tests.networks import unusual_heads
from tests.networks.cifar_resnet import resnet20

HERE = Path(__file__).parents[1] / "networks"


def checkpoint(module: torch.nn.Module) -> Checkpoint:
    return Checkpoint(Path("m.safetensors"), dict(module.state_dict()), "", {})


def described(architecture: str) -> Description:
    return Description(architecture, sources={"architecture": "config.json"})


@pytest.fixture(scope="module")
def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return resnet18(num_classes=5).eval()


@pytest.mark.parametrize("door", ["tensors", "flag", "config"])
def test_a_torchvision_network_by_every_door(small: torch.nn.Module, door: str) -> None:
    description = described("resnet18") if door == "config" else Description()
    network = load_network(checkpoint(small), "resnet18" if door == "flag" else None, description)
    assert (network.builder, network.num_classes, network.channels) == ("resnet18", 5, 3)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(network.module(x), small(x))


@pytest.mark.parametrize("place", [f"{HERE}/cifar_resnet.py", "tests.networks.cifar_resnet"])
def test_a_network_of_ones_own_by_file_and_by_module(place: str) -> None:
    module = resnet20().eval()
    network = load_network(checkpoint(module), f"{place}:resnet20", Description())
    assert (network.builder, network.num_classes, network.channels) == (None, 10, 3)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.module(x), module(x))


class Wrapped(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = resnet20()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "model."])
def test_names_of_ones_own_module_may_begin_like_those_of_a_wrapper(
    tmp_path: Path, prefix: str
) -> None:
    """All names begin with `model.`, which is a prefix to be taken off other checkpoints."""
    tensors = {prefix + n: t for n, t in Wrapped().state_dict().items()}
    torch.save(tensors, tmp_path / "m.pt")
    stored = read(tmp_path / "m.pt")
    network = load_network(stored, f"{__name__}:Wrapped", Description())
    assert network.prefix == prefix
    under = stored.under(network.prefix)
    assert under.tensors.keys() == network.module.state_dict().keys()
    assert under.stored_names(under.tensors).keys() == tensors.keys()


def test_counters_that_old_files_lack_become_zero() -> None:
    tensors = {n: t for n, t in resnet20().state_dict().items() if "num_batches" not in n}
    old = Checkpoint(Path("m"), tensors, "", {})
    load_network(old, "tests.networks.cifar_resnet:resnet20", Description())


def test_the_wrong_network_of_ones_own_is_told_by_its_tensors() -> None:
    with pytest.raises(CheckpointError, match=r"layer1.3.conv1.weight is missing"):
        load_network(checkpoint(resnet20()), "tests.networks.cifar_resnet:resnet32", Description())


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
def test_code_that_does_not_serve_is_one_line(
    tmp_path: Path, small: torch.nn.Module, source: str, name: str, match: str
) -> None:
    (tmp_path / "own.py").write_text(source)
    with pytest.raises(InvalidUsage, match=match) as caught:
        load_network(checkpoint(small), f"{tmp_path / 'own.py'}:{name}", Description())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arch", ["no.py:f", "no.such.module:f", "../x:f", ":f", "a b:f"])
def test_code_that_is_not_there_is_one_line(small: torch.nn.Module, arch: str) -> None:
    with pytest.raises(InvalidUsage, match="--arch"):
        load_network(checkpoint(small), arch, Description())


def test_a_config_cannot_make_pbu_import_anything(
    tmp_path: Path, small: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("import sys; sys.evil_was_here = True\ndef f(): ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in (f"{tmp_path}/evil.py:f", "evil:f", "evil"):
        with pytest.raises(CheckpointError):
            load_network(checkpoint(small), None, described(name))
    assert not hasattr(sys, "evil_was_here")


class Odd(torch.nn.Module):
    """A classifier of grey images by way of RGB, whose head is defined first."""

    def __init__(self, answer: Any = lambda logits: logits) -> None:
        super().__init__()
        self.head = torch.nn.Linear(4, 7)
        self.body = torch.nn.Conv2d(3, 4, 3)
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.head(self.body(x.expand(-1, 3, -1, -1)).mean((2, 3))))


def own(module: torch.nn.Module) -> Network:
    return Network(module, "own.py:odd", None, 4, 3, None, "", "--arch")


def test_the_classes_of_ones_own_network_are_those_it_answers() -> None:
    tried = try_out(own(Odd()), 1, (8, 8), flagged=True)
    assert tried.num_classes == 7
    assert tried.layout == Layout(
        ("body.weight", "body.bias"), ("head.weight", "head.bias"), "head"
    )


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (lambda logits: (logits, logits), "a tuple"),
        (lambda logits: {"logits": logits}, "a dict"),
        (lambda logits: logits[None], r"shape \[1, 2, 7\]"),
        (lambda logits: logits.mean(), r"shape \[\]"),
        (lambda logits: logits.no_such_thing, "AttributeError"),
        (lambda logits: logits @ logits, "RuntimeError"),
    ],
)
def test_a_network_of_ones_own_that_answers_no_logits_is_one_line(answer: Any, found: str) -> None:
    with pytest.raises(CheckpointError, match=found) as caught:
        try_out(own(Odd(answer)), 3, (8, 8), flagged=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("flagged", "error"), [(True, InvalidUsage), (False, ImageError)])
def test_images_that_a_network_does_not_take_are_one_line(flagged: bool, error: Any) -> None:
    module = squeezenet1_1(num_classes=3).eval()
    network = Network(
        module, "squeezenet1_1", "squeezenet1_1", 3, 3, None, "", "tensors", library="torchvision"
    )
    tried = try_out(network, 3, (32, 32), flagged=flagged)
    assert tried.layout.head_layer == "classifier.1"
    assert replace(tried, layout=network.layout) == network
    with pytest.raises(error, match="--size"):
        try_out(network, 3, (8, 8), flagged=flagged)


def test_memory_that_runs_out_is_no_fault_of_the_images() -> None:
    """torch says so on a CPU with a RuntimeError."""

    def full(logits: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        try_out(own(Odd(full)), 3, (8, 8), flagged=True)


def test_weights_that_are_whole_numbers_are_refused(small: torch.nn.Module) -> None:
    """They would be computed with as they stand, without the scale that they were divided by."""
    stored = {
        name: tensor.to(torch.int8) if name == "fc.weight" else tensor
        for name, tensor in small.state_dict().items()
    }
    quantised = Checkpoint(Path("m.safetensors"), stored, "", {})
    with pytest.raises(CheckpointError, match=r"whole numbers \(torch.int8\), first fc.weight"):
        load_network(quantised, None, Description())


def test_a_network_that_changes_its_weights_in_eval_mode_is_refused() -> None:
    """Its file would be read as not merged, and merged once more."""
    state = unusual_heads.from_plain("merging_lora", resnet20().state_dict())
    saved = Checkpoint(Path("m.safetensors"), state, "", {})
    with pytest.raises(CheckpointError, match=r"eval\(\) changes 1 parameters, first linear"):
        load_network(saved, f"{HERE}/unusual_heads.py:merging_lora", Description())
    state = unusual_heads.from_plain("lora", resnet20().state_dict())
    saved = Checkpoint(Path("m.safetensors"), state, "", {})
    assert load_network(saved, f"{HERE}/unusual_heads.py:lora", Description()).num_classes == 10


def test_a_name_of_two_libraries_is_that_of_the_one_that_has_the_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """timm's efficientnet_b0 has other tensors than torchvision's; without timm it is needed."""
    timm = pytest.importorskip("timm")
    module = timm.create_model("efficientnet_b0", num_classes=5).eval()
    found = load_network(checkpoint(module), None, described("efficientnet_b0"))
    assert (found.library, found.num_classes) == ("timm", 5)

    def missing(name: str, what: str) -> Any:
        raise CheckpointError(f"{what} needs {name}: pip install 'pbu-cli[timm]'")

    monkeypatch.setattr("pbu_cli.models.sources.timm.library", missing)
    with pytest.raises(CheckpointError, match="pip install"):
        load_network(checkpoint(module), None, described("efficientnet_b0"))
