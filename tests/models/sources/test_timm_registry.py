"""timm's classifiers are recognised by their tensors, with and without timm installed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from typing import Any

import pytest

from pbu_cli.models.sources import timm_patterns, timm_registry, torchvision_registry
from pbu_cli.models.sources.timm_patterns import Shapes
from pbu_cli.models.sources.timm_registry import alike, default_size, infer, known

SAMPLE = [
    "convnext_atto",
    "csatv2",
    "deit_tiny_distilled_patch16_224",
    "efficientnet_b0",
    "gcvit_xxtiny",
    "levit_128s",
    "maxvit_nano_rw_256",
    "mixer_b16_224",
    "mobilenetv3_small_050",
    "naflexvit_base_patch16_gap",
    "regnetx_002",
    "resnet50",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
]


def resnet18(classes: int, channels: int = 3) -> dict[str, tuple[int, ...]]:
    """Shapes of torchvision's ResNet-18, which are also those of timm's."""
    sizes = {"classes": classes, "channels": channels}
    return {
        name: tuple(sizes[dim] if isinstance(dim, str) else dim for dim in shape)
        for name, shape in torchvision_registry.registry()["resnet18"].items()
    }


def vit(patches: int, classes: int, channels: int = 3) -> dict[str, tuple[int, ...]]:
    """Shapes of `vit_tiny_patch16_224` for images of `patches` x `patches` patches."""
    width = 192
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + patches * patches, width),
        "patch_embed.proj.weight": (width, channels, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }
    layers = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for block in range(12):
        path = f"blocks.{block}"
        for norm in ("norm1", "norm2"):
            shapes |= {f"{path}.{norm}.weight": (width,), f"{path}.{norm}.bias": (width,)}
        for layer, (out, into) in layers.items():
            shapes[f"{path}.{layer}.weight"] = (out * width, into * width)
            shapes[f"{path}.{layer}.bias"] = (out * width,)
    return shapes


def test_a_resnet_is_recognised_with_its_classes_and_channels() -> None:
    found = infer(resnet18(classes=7, channels=1))
    assert found is not None
    assert "resnet18" in found.names
    assert (found.num_classes, found.channels) == (7, 1)
    assert (found.sized, found.image_size, found.takes_size) == ({}, None, False)


def test_counters_of_batchnorm_do_not_matter() -> None:
    counters = {"bn1.num_batches_tracked": ()}
    assert infer(resnet18(7) | counters) == infer(resnet18(7))


def test_the_position_embedding_of_a_vit_tells_the_image_size() -> None:
    found = infer(vit(patches=3, classes=10))
    assert found is not None
    assert "vit_tiny_patch16_224" in found.names
    assert found.image_size == 48
    assert found.sized == {"pos_embed": (1, 10, 192)}
    assert found.takes_size


def test_names_whose_default_size_fits_are_separate_from_those_of_other_sizes() -> None:
    small, large = infer(vit(14, 10)), infer(vit(24, 10))
    assert small is not None
    assert large is not None
    assert "vit_tiny_patch16_224" in small.names
    assert "vit_tiny_patch16_384" in small.others
    assert "vit_tiny_patch16_384" in large.names
    assert "vit_tiny_patch16_224" in large.others
    assert (small.image_size, large.image_size) == (224, 384)


def test_a_position_embedding_that_is_no_square_leaves_the_image_size_open() -> None:
    found = infer(vit(3, 10) | {"pos_embed": (1, 7, 192)})
    assert found is not None
    assert found.image_size is None


@pytest.mark.parametrize(
    "change",
    [
        {"fc.weight": (7, 511)},  # a size that no choice explains
        {"fc.bias": (8,)},  # two numbers of classes
        {"fc.weight": (), "fc.bias": ()},  # a dimension that is not there
        {"fc.weight": (0, 512), "fc.bias": (0,)},  # no class
        {"conv1.weight": (64, 0, 7, 7)},  # no channel
        {"odd": (1,)},
        {"fc.extra.num_batches_tracked": (3,)},
    ],
)
def test_other_tensors_are_of_no_network(change: dict[str, tuple[int, ...]]) -> None:
    assert infer(resnet18(7) | change) is None


def test_a_network_without_a_head_is_no_classifier() -> None:
    assert infer({n: s for n, s in resnet18(7).items() if not n.startswith("fc.")}) is None
    assert infer({}) is None


def test_hostile_files_cost_little_time() -> None:
    infer(vit(14, 10))  # reads the table
    start = time.perf_counter()
    many: Shapes = {f"blocks.{number}.weight": (2**62,) * 8 for number in range(50_000)}
    assert infer(many) is None
    assert infer(dict(list(many.items())[:10_000])) is None
    assert infer(vit(14, 10) | {"pos_embed": (1, 10**4000, 192)}) is not None
    assert infer({"\udcff\n\0": (-1,), "": ()}) is None
    assert time.perf_counter() - start < 1


def test_names_are_known_and_suggested() -> None:
    assert known("vit_base_patch16_224")
    assert not known("vit_base_patch16_224.augreg_in21k")
    assert "vit_base_patch16_224" in alike("vit_base_patch16_22")
    assert alike("x" * 100_000) == []
    assert default_size("vit_tiny_patch16_384") == 384


def test_neither_timm_nor_torch_is_loaded() -> None:
    code = (
        "import sys; from pbu_cli.models.sources.timm_registry import infer, known;"
        "assert known('resnet50'); assert infer({'a': (1,)}) is None;"
        "assert not {'timm', 'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def of_timm(name: str, **options: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a network that timm builds, with BatchNorm's counters."""
    pytest.importorskip("timm")
    from tests.measure.timm_shapes import network

    model = network(name, **options)
    return {tensor: tuple(value.shape) for tensor, value in model.state_dict().items()}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_network_that_timm_builds_is_found(name: str) -> None:
    channels = 3 if name == "csatv2" else 1
    found = infer(of_timm(name, num_classes=7, in_chans=channels))
    assert found is not None
    assert name in found.names
    assert (found.num_classes, found.channels) == (7, channels)
    assert found.image_size in (None, default_size(name))


@pytest.mark.parametrize(
    ("name", "size", "told"),
    [
        ("flexivit_small", 240, 240),  # 15 x 15 patches, and no class token among them
        ("maxvit_nano_rw_256", 64, 64),
        ("mixer_b16_224", 64, 64),
        ("swin_tiny_patch4_window7_224", 32, None),
        ("vit_tiny_patch16_224", 32, 32),
    ],
)
def test_a_network_for_small_images_is_found(name: str, size: int, told: int | None) -> None:
    found = infer(of_timm(name, num_classes=7, img_size=size))
    assert found is not None
    assert name in found.names
    assert found.image_size == told
    assert found.takes_size


@pytest.mark.slow
def test_the_registry_is_that_of_the_installed_timm() -> None:
    timm = pytest.importorskip("timm")
    from tests.measure import make_timm_registry, timm_shapes

    for name in random.Random(0).sample(sorted(timm.list_models()), 40):
        found = timm_shapes.studied(name)
        assert known(name) == make_timm_registry.is_classifier(found), name
        if known(name):
            match = infer(found["tensors"])
            assert match is not None, name
            assert name in match.names, name
            assert match.num_classes == timm_shapes.CLASSES, name
            form = timm_patterns.read_form(make_timm_registry.form_of(found))
            entries = timm_registry._entries()[timm_patterns.names_digest(found["tensors"])]
            assert form in [entry.form for entry in entries], name
