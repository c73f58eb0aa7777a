"""Modules are built without torch's compiler, which can still be imported afterwards; stems keep
their geometry."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pbu_cli.models.sources.torchvision_build import build
from pbu_cli.models.sources.torchvision_registry import Architecture
from tests.measure.make_registry import classifier, classifiers, first_convolution

BUILT = """
import sys
from pbu_cli.models.sources.torchvision_registry import Architecture, registry
from pbu_cli.models.sources.torchvision_build import build
for name in registry():
    if name.startswith({families!r}):
        build(Architecture(name, 10, image_size=224 if name == "maxvit_t" else None))
assert "torch._dynamo" not in sys.modules, name
assert "torch._dynamo.utils" not in sys.modules
"""
AFTERWARDS = """
from torchvision.ops.roi_align import is_compile_supported
assert is_compile_supported("cpu") in (True, False)
import torch._dynamo.utils
assert is_compile_supported("cpu") == torch._dynamo.utils.is_compile_supported("cpu")
"""
ANOTHER = """
import sys
from pbu_cli.models.sources.torchvision_build import _without_compiler
with _without_compiler():
    from torch._dynamo.utils import is_compile_supported
    assert "torch._dynamo" not in sys.modules
    from torch._dynamo.utils import counters
    import torch._dynamo.utils
assert torch._dynamo.utils.counters is counters
assert sys.modules["torch._dynamo.utils"] is torch._dynamo.utils
"""


def python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


FAMILIES = [("resnet", "vgg11", "densenet", "mobilenet", "mnasnet"), ("maxvit", "swin", "regnet")]


@pytest.mark.slow
@pytest.mark.parametrize("families", FAMILIES)
def test_no_network_needs_the_compiler(families: tuple[str, ...]) -> None:
    python(BUILT.format(families=families))


@pytest.mark.slow
def test_what_was_left_out_is_there_when_it_is_asked_for() -> None:
    python(BUILT.format(families=("resnet18",)) + AFTERWARDS)


@pytest.mark.slow
def test_another_wish_of_torchvision_is_granted_at_once() -> None:
    python(ANOTHER)


@pytest.mark.parametrize("name", classifiers())
def test_a_stem_for_other_channels_keeps_its_geometry(name: str) -> None:
    original = classifier(name, 10)
    size = 224 if name.startswith(("vit", "maxvit")) else None
    path = first_convolution(original).removesuffix(".weight")
    theirs = original.get_submodule(path)
    ours = build(Architecture(name, 10, 5, image_size=size)).get_submodule(path)
    assert isinstance(theirs, torch.nn.Conv2d)
    assert isinstance(ours, torch.nn.Conv2d)
    assert repr(ours) == repr(theirs).replace("Conv2d(3,", "Conv2d(5,")  # kernel, stride, padding
