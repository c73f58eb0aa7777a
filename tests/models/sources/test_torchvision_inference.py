"""Every torchvision classifier is inferred and rebuilt; what is none of them is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from pbu_cli.errors import CheckpointError, InvalidUsage
from pbu_cli.models.network import load_tensors
from pbu_cli.models.sources import torchvision_inference as architecture
from pbu_cli.models.sources.torchvision_build import build
from pbu_cli.models.sources.torchvision_inference import POSITIONS, infer, infer_as
from pbu_cli.models.sources.torchvision_registry import AUXILIARY, Architecture, registry
from tests.measure import registry_table
from tests.measure.make_registry import classifier, classifiers, first_convolution

RESNETS = [name for name in classifiers() if "resne" in name]
SAMPLE = [
    *("resnet18", "resnet34", "densenet121", "convnext_tiny", "vit_b_16", "swin_t", "swin_v2_t"),
    *("efficientnet_b0", "regnet_y_400mf", "mobilenet_v3_small", "shufflenet_v2_x0_5", "googlenet"),
    *("inception_v3", "squeezenet1_0", "mnasnet0_5", "maxvit_t"),
]

Shapes = dict[str, tuple[int, ...]]


def shapes_of(model: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def torchvision_shapes(name: str, classes: int, channels: int = 3, **options: object) -> Shapes:
    """From torchvision itself, so that the registry file is not its own judge."""
    model = classifier(name, classes, **options)
    shapes = shapes_of(model)
    stem = first_convolution(model)
    shapes[stem] = (shapes[stem][0], channels, *shapes[stem][2:])
    return shapes


def read_shapes(path: Path) -> Shapes:
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def image_size(name: str) -> int | None:
    return 224 if name.startswith(("vit", "maxvit")) else None


@pytest.mark.parametrize("name", classifiers())
def test_every_classifier_is_inferred_and_rebuilt(name: str) -> None:
    """At class counts that are and are not the width of some layer, and 1, 3 and 4 channels."""
    few = torchvision_shapes(name, 10, channels=1)
    width = max(shape[1] for tensor, shape in few.items() if shape[:1] == (10,) and shape[1:])
    as_wide = torchvision_shapes(name, width, channels=4)
    heads = [tensor for tensor in few if few[tensor][:1] != as_wide[tensor][:1]]

    auxiliary = name in AUXILIARY
    expected = Architecture(name, 10, 1, False, image_size(name), auxiliary)
    assert infer(few) == infer_as(name, few) == expected
    assert infer(dict(reversed(few.items()))) == expected
    assert shapes_of(build(expected)) == few
    assert infer(as_wide) == Architecture(name, width, 4, False, image_size(name), auxiliary)
    for classes in (1, 2, 512, 1000, 2048):
        shapes = few | {tensor: (classes, *few[tensor][1:]) for tensor in heads}
        assert infer(shapes) == dataclasses.replace(expected, num_classes=classes)


@pytest.mark.parametrize("name", RESNETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_resnet_with_a_small_stem(name: str, channels: int) -> None:
    shapes = torchvision_shapes(name, 10, channels)
    shapes["conv1.weight"] = (64, channels, 3, 3)
    found = infer(shapes)
    assert found == Architecture(name, 10, channels, small_stem=True)
    model = build(found)
    assert shapes_of(model) == shapes
    assert isinstance(model.maxpool, torch.nn.Identity)
    assert model.conv1.stride == (1, 1)
    assert model.conv1.padding == (1, 1)


@pytest.mark.parametrize("name", AUXILIARY)
def test_auxiliary_heads_may_be_left_out_but_not_by_half(name: str) -> None:
    shapes = torchvision_shapes(name, 10, aux_logits=False)
    assert infer(shapes) == Architecture(name, 10, aux_logits=False)
    assert shapes_of(build(infer(shapes))) == shapes

    whole = torchvision_shapes(name, 10)
    removed = next(tensor for tensor in whole if tensor.startswith(AUXILIARY[name]))
    del whole[removed]
    with pytest.raises(CheckpointError, match=rf"{name}, 1 tensor differs \({removed} is missing"):
        infer(whole)


@pytest.mark.parametrize(("name", "size"), [("vit_b_16", 384), ("vit_b_32", 64), ("vit_h_14", 518)])
def test_the_image_size_of_a_vit_is_read_off_its_position_embedding(name: str, size: int) -> None:
    shapes = torchvision_shapes(name, 10, image_size=size)
    assert infer(shapes) == Architecture(name, 10, image_size=size)
    assert shapes_of(build(infer(shapes))) == shapes

    shapes[POSITIONS] = (1, shapes[POSITIONS][1] + 1, shapes[POSITIONS][2])
    with pytest.raises(CheckpointError, match=r"pos_embedding is \[.*expected \[1, 1\+n\*n, "):
        infer(shapes)


def test_maxvit_takes_the_image_size_that_its_user_asks_for() -> None:
    found = infer(torchvision_shapes("maxvit_t", 10))
    larger = build(dataclasses.replace(found, image_size=448))
    assert shapes_of(larger) == shapes_of(build(found))
    with pytest.raises(InvalidUsage, match=r"--size 225: maxvit_t .*not divisible"):
        build(dataclasses.replace(found, image_size=225))


def test_tensors_that_fit_two_are_ambiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    alexnet = registry()["alexnet"]
    monkeypatch.setattr(architecture, "registry", lambda: {"alexnet": alexnet, "twin": alexnet})
    with pytest.raises(CheckpointError, match=r"fit alexnet and twin alike; .*--arch NAME"):
        infer(torchvision_shapes("alexnet", 10))


def test_files_from_before_num_batches_tracked() -> None:
    source = build(Architecture("resnet18", 10))
    old = {n: t for n, t in source.state_dict().items() if not n.endswith("num_batches_tracked")}
    found = infer({name: tuple(tensor.shape) for name, tensor in old.items()})
    assert found == Architecture("resnet18", 10)
    model = build(found)
    load_tensors(model, old)
    assert model.get_buffer("bn1.num_batches_tracked") == 0

    stray = {**shapes_of(source), "fc.num_batches_tracked": ()}
    with pytest.raises(CheckpointError, match=r"fc.num_batches_tracked is unexpected"):
        infer(stray)


def test_a_near_miss_names_the_closest_and_the_tensors_that_differ() -> None:
    shapes = torchvision_shapes("resnet34", 10)
    shapes["layer2.0.conv1.weight"] = (128, 65, 3, 3)
    del shapes["layer4.2.bn2.bias"]
    shapes["fc2.weight"] = (3, 4)
    with pytest.raises(CheckpointError) as caught:
        infer(shapes)
    assert str(caught.value) == (
        "architecture not recognised: closest of torchvision is resnet34, 3 tensors differ"
        " (layer2.0.conv1.weight is [128, 65, 3, 3], expected [128, 64, 3, 3];"
        " layer4.2.bn2.bias is missing; fc2.weight is unexpected);"
        " then resnet18 (81), resnet50 (119); for a model of your own pass --arch FILE.py:FUNCTION"
    )


def test_a_named_architecture_is_checked_against_the_tensors() -> None:
    shapes = torchvision_shapes("resnet18", 10)
    assert infer_as("resnet18", shapes) == Architecture("resnet18", 10)
    with pytest.raises(CheckpointError) as caught:
        infer_as("resnet34", shapes)
    assert "--arch resnet34: not the architecture of this checkpoint" in str(caught.value)
    assert "layer1.2.conv1.weight is missing" in str(caught.value)
    assert str(caught.value).endswith("; the tensors are those of resnet18")
    with pytest.raises(CheckpointError, match=r"--arch resnet-18: .*did you mean resnet18 or"):
        infer_as("resnet-18", shapes)


def test_tensors_that_resemble_nothing() -> None:
    with pytest.raises(CheckpointError, match=r"0 tensors \(none\)"):
        infer({})
    with pytest.raises(CheckpointError, match=r"2 tensors \(a\\x1b\[2J, \\n\)") as caught:
        infer({"a\x1b[2J": (2**63,), "\n": ()})
    assert str(caught.value).isprintable()
    with pytest.raises(CheckpointError, match=r"1000000 tensors"):
        infer({str(i): (1,) for i in range(1_000_000)})


@pytest.mark.parametrize(
    ("file", "expected"),
    [("mnist_resnet34_fp16.safetensors", Architecture("resnet34", 10, in_channels=1))],
)
def test_real_checkpoints(shared: Path, file: str, expected: Architecture) -> None:
    shapes = read_shapes(shared / "checkpoints" / file)
    infer(shapes)
    start = time.perf_counter()
    assert infer(shapes) == expected
    assert time.perf_counter() - start < 1


def test_a_resnet_of_another_design_is_not_taken_for_torchvisions(shared: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        infer(read_shapes(shared / "checkpoints" / "cifar10_resnet20.safetensors"))
    message = str(caught.value)
    assert "closest of torchvision is resnet18, 134 tensors differ" in message
    assert "conv1.weight is [16, 3, 3, 3], expected [64, 3, 3, 3]" in message
    assert "linear.bias" in message or "and 128 more" in message
    assert message.endswith("pass --arch FILE.py:FUNCTION")


def test_inference_loads_no_torch() -> None:
    code = (
        "import sys; from pbu_cli.models.sources.torchvision_inference import *\n"
        "shapes = {n: tuple(7 if isinstance(d, str) else d for d in s)"
        " for n, s in registry()['vgg11'].items()}\n"
        "print(infer(shapes).name, infer_as('vgg11', shapes).num_classes, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["vgg11", "7", "False"]


BASES = {name: torchvision_shapes(name, 10) for name in ("alexnet", "resnet18", "googlenet")}
BASES["vit_b_16"] = torchvision_shapes("vit_b_16", 10)
SIZES = st.one_of(st.integers(-1, 4), st.sampled_from([64, 197, 512, 2**40, 2**64 - 1]))
MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["drop", "reshape", "resize", "rename", "add"]),
        st.integers(0, 10_000),
        st.lists(SIZES, max_size=5),
        st.text(max_size=30),
    ),
    max_size=6,
)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(BASES)), MUTATIONS)
def test_any_names_and_shapes_end_in_an_architecture_or_one_line(
    base: str, mutations: list[tuple[str, int, list[int], str]]
) -> None:
    shapes = dict(BASES[base])
    for kind, position, sizes, text in mutations:
        name = list(shapes)[position % len(shapes)]
        if kind == "drop":
            del shapes[name]
        elif kind == "reshape":
            shapes[name] = tuple(sizes)
        elif kind == "resize" and sizes and shapes[name]:
            at = position % len(shapes[name])
            shapes[name] = (*shapes[name][:at], sizes[0], *shapes[name][at + 1 :])
        elif kind == "rename":
            shapes[text] = shapes.pop(name)
        elif kind == "add":
            shapes[f"{name}.{text}"] = tuple(sizes)
    for found in (outcome(infer, shapes), outcome(partial(infer_as, base), shapes)):
        if isinstance(found, Architecture):
            assert found.name == base
            assert min(found.num_classes, found.in_channels, found.image_size or 1) >= 1
        else:
            assert found.isprintable()
            assert len(found) < 2_000


def outcome(attempt: Callable[[Shapes], Architecture], shapes: Shapes) -> Architecture | str:
    try:
        return attempt(shapes)
    except CheckpointError as error:
        return str(error)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_saved_checkpoint_rebuilds_to_the_same_logits(name: str, tmp_path: Path) -> None:
    asked = Architecture(
        name, 10, in_channels=1 if name == "resnet34" else 3, aux_logits=name == "googlenet"
    )
    row = registry_table.round_trip(asked, tmp_path)
    assert dataclasses.replace(row.found, image_size=None) == asked
    assert row.difference == 0
    assert row.logit > 0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_stem_rebuilds_to_the_same_logits(channels: int, tmp_path: Path) -> None:
    asked = Architecture("resnet18", 10, channels, small_stem=True)
    row = registry_table.round_trip(asked, tmp_path)
    assert row.found == asked
    assert row.difference == 0
