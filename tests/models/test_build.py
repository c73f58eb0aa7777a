"""Building a network imports no compiler, and takes nothing from whoever wants it afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

BUILT = """
import sys
from pbu_cli.architecture import Architecture, registry
from pbu_cli.model import build
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
from pbu_cli.model import _without_compiler
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


@pytest.mark.parametrize("families", FAMILIES)
def test_no_network_needs_the_compiler(families: tuple[str, ...]) -> None:
    python(BUILT.format(families=families))


def test_what_was_left_out_is_there_when_it_is_asked_for() -> None:
    python(BUILT.format(families=("resnet18",)) + AFTERWARDS)


def test_another_wish_of_torchvision_is_granted_at_once() -> None:
    python(ANOTHER)
