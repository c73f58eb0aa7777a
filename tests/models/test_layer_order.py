"""The last stage and the head by the order of execution, against what is read off the source."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbu_cli.models.layer_order import Layout
from pbu_cli.models.parameter_groups import layout_of
from tests.networks import unusual_heads


def layout(model: nn.Module, size: int = 32, channels: int = 3) -> Layout:
    return layout_of(model.eval(), None, torch.zeros(2, channels, size, size))


def starts(names: tuple[str, ...], depth: int = 1) -> list[str]:
    """The first parts of the names, each once."""
    return list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in names))


class Block(nn.Module):
    """A convolution with squeeze-and-excite, whose layers see one position."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.bn = nn.BatchNorm2d(outputs)
        self.fc1, self.fc2 = nn.Conv2d(outputs, 2, 1), nn.Conv2d(2, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        z: Tensor = y * self.fc2(self.fc1(y.mean((2, 3), keepdim=True))).sigmoid()
        return z


class Listed(nn.Module):
    """Blocks in one list, defined in another order than they run in, as EfficientNet-Lite0 has."""

    def __init__(self, strides: tuple[int, ...] = (2, 2, 1, 2, 1)) -> None:
        super().__init__()
        self.last = nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 5)
        self.blocks = nn.ModuleList(Block(8, 8, stride) for stride in strides)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(self.last(x).mean((2, 3)))
        return y


@pytest.mark.parametrize("size", [32, 8])
def test_the_last_stage_is_the_blocks_of_the_last_resolution(size: int) -> None:
    """Also where small images have shrunk it to a single pixel."""
    found = layout(Listed(), size)
    assert starts(found.stage, 2) == ["last.weight", "last.bias", "blocks.3", "blocks.4"]
    assert found.head == ("head.weight", "head.bias")
    assert found.head_layer == "head"


def test_of_blocks_at_one_resolution_it_is_the_last_quarter() -> None:
    found = layout(Listed((1,) * 9))
    assert starts(found.stage, 2)[2:] == ["blocks.6", "blocks.7", "blocks.8"]


class Token(nn.Module):
    """A small ViT with a class token, norms on the heads of attention and a layer scale."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.cls, self.position = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(65, 8))
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(*(self.Block() for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(8))
            self.norm, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
            self.qkv, self.mlp = nn.Linear(8, 24), nn.Linear(8, 8)
            self.q_norm, self.k_norm = nn.LayerNorm(4), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            n, t, _ = x.shape
            q, k, v = self.qkv(self.norm(x)).view(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
            a = (self.q_norm(q) @ self.k_norm(k).mT).softmax(-1) @ v
            x = x + self.gamma * a.transpose(1, 2).reshape(n, t, 8)
            y: Tensor = x + self.mlp(self.norm2(x))
            return y

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.cls.expand(len(x), 1, 8), x], 1) + self.position
        y: Tensor = self.head(self.norm(self.blocks(x)[:, 0]))
        return y


def test_of_a_vit_it_is_the_last_quarter_with_the_layer_scales_and_without_the_tokens() -> None:
    found = layout(Token(6))
    assert starts(found.stage, 2) == ["blocks.4", "blocks.5", "norm.weight", "norm.bias"]
    assert "blocks.4.gamma" in found.stage


def test_a_wrapper_around_the_network_is_opened() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.unused = Token(4), nn.Linear(99, 99)

        def forward(self, x: Tensor) -> Any:
            return self.backbone(x)

    found = layout(Wrapped())
    assert starts(found.stage, 3)[0] == "backbone.blocks.3"
    assert found.head_layer == "backbone.head"
    assert not any("unused" in name for name in found.stage + found.head)


def test_hidden_layers_that_hold_most_parameters_are_the_last_stage() -> None:
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    found = layout(nn.Sequential(*body, nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 5)))
    assert (found.stage, found.head_layer) == (("3.weight", "3.bias"), "5")


def test_two_heads_side_by_side_are_both_the_head_and_a_chain_is_not() -> None:
    found = layout(unusual_heads.distilled())
    assert starts(found.head) == ["head", "head_dist"]
    assert starts(found.stage) == ["layer3"]
    chain = nn.Sequential(nn.Flatten(), nn.Linear(3072, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    assert layout(chain).head == ("3.weight", "3.bias")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", [kind for kind in unusual_heads.KINDS if kind != "distilled"])
def test_heads_that_are_not_plain_layers(kind: str) -> None:
    found = layout(getattr(unusual_heads, kind)())
    assert starts(found.stage)[-1] == ("linear" if kind == "lora" else "layer3")
    assert starts(found.head) == ["linear"]
    assert found.head_layer == ("linear.lora_B" if kind == "lora" else "linear")


def test_layers_with_parametrised_weights_are_counted() -> None:
    norm = nn.utils.parametrizations.weight_norm
    convolutions = [norm(nn.Conv2d(3, 3, 3, 2, 1)) for _ in range(4)]
    found = layout(nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(12, 5)))
    assert starts(found.stage) == ["3"]


def test_a_last_layer_of_another_kind_is_the_head_without_a_layer() -> None:
    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.randn(5, 12))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.rows.T

    body = [nn.Conv2d(3, 3, 3, 2, 1) for _ in range(4)]
    found = layout(nn.Sequential(*body, nn.Flatten(), Cosine()))
    assert (found.head, found.head_layer) == (("5.rows",), None)


def test_a_last_layer_whose_weight_is_used_without_a_call_is_the_head() -> None:
    class Unheard(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 5)
            self.body = nn.Sequential(*(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(4)))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).flatten(1) @ self.fc.weight.T

    found = layout(Unheard())
    assert (found.head, found.head_layer) == (("fc.weight", "fc.bias"), "fc")
    assert starts(found.stage, 2) == ["body.3"]


# network of timm -> the first and the last parts of the stage, and the head
TIMM = {
    "resnet18": ("layer4.0", "layer4.1", ["fc"]),
    "ecaresnet26t": ("layer4.0", "layer4.1", ["fc"]),
    "efficientnet_lite0": ("blocks.5", "bn2.bias", ["classifier"]),
    "convnext_atto": ("stages.3", "head.norm", ["head.fc"]),
    "swin_tiny_patch4_window7_224": ("layers.3", "norm.bias", ["head.fc"]),
    "vit_tiny_patch16_224": ("blocks.9", "norm.bias", ["head"]),
    "deit_tiny_distilled_patch16_224": ("blocks.9", "norm.bias", ["head", "head_dist"]),
    "mixer_s32_224": ("blocks.6", "norm.bias", ["head"]),
    "levit_128s": ("stages.2", "head_dist.bn", ["head.linear", "head_dist.linear"]),
    "mvitv2_tiny": ("stages.3", "norm.bias", ["head.fc"]),
    "hiera_tiny_224": ("blocks.10", "head.norm", ["head.fc"]),
    "xcit_nano_12_p8_224": ("blocks.10", "norm.bias", ["head"]),
    "volo_d1_224": ("network.4", "norm.bias", ["aux_head", "head"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, num_classes=7)
    found = layout(model, model.default_cfg["input_size"][1])
    first, last, heads = TIMM[name]
    assert (starts(found.stage, 2)[0], starts(found.stage, 2)[-1]) == (first, last)
    assert sorted({name.rpartition(".")[0] for name in found.head}) == heads


@pytest.mark.slow
def test_a_network_of_transformers_with_its_downsampling_at_the_end_of_a_stage() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1] * 4,
        window_size=2, num_labels=7,
    )  # fmt: skip

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = transformers.SwinForImageClassification(config)

        def forward(self, x: Tensor) -> Any:
            return self.inner(x).logits

    found = layout(Logits(), 64)
    assert starts(found.stage, 5)[0] == "inner.swin.encoder.layers.3"
    assert found.head_layer == "inner.classifier"
