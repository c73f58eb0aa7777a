"""The Fisher diagonal against a batch-of-one loop, for every kind of layer, use and layout."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    SwinTransformerBlockV2,
)

from pbu_cli.errors import InvalidUsage, PbuError
from pbu_cli.fisher import accumulate as squares
from pbu_cli.fisher import linear_kernels as kernels
from pbu_cli.fisher.accumulate import images_at_once
from pbu_cli.fisher.conv_kernels import CONV
from pbu_cli.fisher.diagonal import fisher_diagonal
from pbu_cli.fisher.linear_kernels import LINEAR
from pbu_cli.fisher.validated_plan import _plan, at_rest, plan
from tests.fisher.fisher_oracle import errors, fisher_loop, randomised

LABELS = torch.tensor([0, 3, 1])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other over such small tensors take minutes on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (lambda: models.ResNet(BasicBlock, [1, 1, 1, 1], 4), 32),
    "resnext": (
        lambda: models.ResNet(Bottleneck, [1, 1, 1, 1], 4, groups=4, width_per_group=4),
        32,
    ),
    "densenet": (lambda: models.DenseNet(8, (2, 2, 2), 8, num_classes=4), 32),
    "convnext": (
        lambda: models.ConvNeXt(
            [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)], num_classes=4
        ),
        32,
    ),
    "vit": (lambda: models.VisionTransformer(16, 4, 2, 2, 16, 24, num_classes=4), 16),
    "swin": (
        lambda: models.SwinTransformer([2, 2], 8, [2, 2], [2, 4], [2, 2], num_classes=4),
        20,
    ),
    "swin_v2": (
        lambda: models.SwinTransformer(
            [2, 2],
            8,
            [2, 2],
            [2, 4],
            [2, 2],
            num_classes=4,
            block=SwinTransformerBlockV2,
            downsample_layer=PatchMergingV2,
        ),
        20,
    ),
    "maxvit": (
        lambda: models.MaxVit((32, 32), 8, 2, [8, 16], [1, 1], 8, 0.0, num_classes=4),
        32,
    ),
    "efficientnet": (
        lambda: models.EfficientNet(
            [FusedMBConvConfig(2, 3, 2, 8, 8, 1), MBConvConfig(4, 5, 2, 8, 16, 2)],
            0.0,
            num_classes=4,
            last_channel=32,
        ),
        32,
    ),
    "regnet": (
        lambda: models.RegNet(
            BlockParams.from_init_params(4, 16, 8.0, 2.0, 8, se_ratio=0.25), num_classes=4
        ),
        32,
    ),
    "mobilenet": (lambda: models.mobilenet_v3_small(num_classes=4), 32),
    "mnasnet": (lambda: models.mnasnet0_5(num_classes=4), 32),
    "shufflenet": (lambda: models.shufflenet_v2_x0_5(num_classes=4), 32),
    "squeezenet": (lambda: models.squeezenet1_1(num_classes=4), 32),
}


def images(size: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, channels, size, size, generator=generator, dtype=torch.double)


def check(model: nn.Module, x: Tensor) -> None:
    """All parameters, both estimators."""
    for estimator in ("empirical", "exact"):
        wanted = fisher_loop(model, x, LABELS, estimator)
        found = fisher_diagonal(
            model, [(x[:2], LABELS[:2]), (x[2:], LABELS[2:])], estimator=estimator
        )
        whole, worst, where = errors(found, wanted)
        assert whole < 1e-10
        assert worst < 1e-8, where


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str) -> None:
    make, size = FAMILIES[name]
    torch.manual_seed(0)
    model = randomised(make())
    check(model, images(size))
    assert "image by image" not in plan(model, images(size)).values()


@pytest.mark.parametrize("forced", [*CONV, *LINEAR])
@pytest.mark.parametrize("name", ["resnet", "densenet", "convnext", "vit"])
def test_family_by_every_kernel(name: str, forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever kernel is chosen, the result is the same."""

    def conv_kernel(size: tuple[int, ...], *shape: Any) -> str:
        *_, groups, options, _ = shape
        if groups > 1:
            fits = forced == "folded" or (forced == "depthwise" and size[:2] == (groups, 1))
        else:
            fits = forced != "depthwise" and (forced != "swapped" or options.stride == (1, 1))
        return forced if fits else "folded"

    if forced in CONV:
        monkeypatch.setattr(kernels, "conv_kernel", conv_kernel)
    if forced in LINEAR:
        monkeypatch.setattr(kernels, "linear_kernel", lambda positions: forced)
    make, size = FAMILIES[name]
    torch.manual_seed(0)
    check(randomised(make()), images(size))


class Net(nn.Module):
    """`body` between a small stem and a head, as in a classifier."""

    def __init__(self, body: nn.Module, channels: int = 4, stem: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1) if stem else nn.Identity()
        self.body = body
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.gelu(self.body(F.gelu(self.stem(x)))).flatten(2).mean(2))


class Do(nn.Module):
    """forward = `function(self, x)`, with the given parameters and modules on self."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def untokens(t: Tensor) -> Tensor:
    return t.transpose(1, 2)


def attend(
    batch_first: bool, need_weights: bool, cross: bool = False
) -> Callable[[Any, Tensor], Any]:
    def forward(self: Any, x: Tensor) -> Any:
        t = tokens(x) if batch_first else tokens(x).transpose(0, 1)
        out = self.mha(t, t.sin() if cross else t, t, need_weights=need_weights)[0]
        return untokens(out if batch_first else out.transpose(0, 1))

    return forward


def twice(self: Any, x: Tensor) -> Any:
    return self.conv(self.conv(x).relu_())


def by_image(self: Any, x: Tensor) -> Any:
    return torch.stack([self.conv(image) for image in x])


def windows(self: Any, x: Tensor) -> Any:
    """Quarters of the image as images of their own, image by image and then the other way."""
    parts = torch.stack([x[..., :3, :3], x[..., :3, 3:], x[..., 3:, :3], x[..., 3:, 3:]], 1)
    inner = self.conv(parts.flatten(0, 1)).unflatten(0, (-1, 4)).sum(1)
    outer = self.norm(parts.transpose(0, 1).flatten(0, 1)).unflatten(0, (4, -1)).prod(0)
    return inner + outer


def in_halves(self: Any, x: Tensor) -> Any:
    """Positions as [outer, image, inner] in one dimension."""
    t = x.flatten(2).permute(2, 0, 1).unflatten(0, (6, 6)).transpose(1, 2).flatten(0, 2)
    return self.lin(t).unflatten(0, (6, -1, 6)).sum((0, 2))[..., None]


def functional(self: Any, x: Tensor) -> Any:
    z = F.conv2d(x, self.kernel, padding="same", dilation=3)
    z = F.linear(input=z.movedim(1, -1), weight=self.weight, bias=self.bias).movedim(-1, 1)
    return torch.mul(self.gain, torch.add(z, self.offset))


def class_token(self: Any, x: Tensor) -> Any:
    t = torch.cat([self.token.expand(len(x), -1, -1), tokens(x)], 1) + self.position
    return untokens(self.enc(t))


def two_layouts(self: Any, x: Tensor) -> Any:
    t = tokens(x)
    return untokens(self.first(t) + self.second(t.transpose(0, 1)).transpose(0, 1))


def padded(mode: Any, **options: Any) -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding_mode=mode, **options)


def conv1d_and_3d(self: Any, x: Tensor) -> Any:
    return self.three(self.one(x.flatten(2)).view(len(x), 4, 3, 3, -1))


D = torch.double
TRAPS: dict[str, Callable[[], nn.Module]] = {
    "shared module": lambda: Do(twice, conv=nn.Conv2d(4, 4, 3, padding=1)),
    "shared parameter": lambda: Do(
        lambda self, x: (
            F.conv2d(F.conv2d(x, self.w[..., None, None]).tanh(), self.w.T[..., None, None])
            + F.linear(x.movedim(1, -1), self.w).movedim(-1, 1)
        ),
        w=torch.randn(4, 4),
    ),
    "used inside and outside": lambda: Do(
        lambda self, x: self.conv(x) * (1 + self.conv.weight.square().sum()),
        conv=nn.Conv2d(4, 4, 3),
    ),
    "used unseen": lambda: Do(
        lambda self, x: (
            self.conv(x)
            + torch.einsum("oi,nihw->nohw", self.conv.weight[..., 0, 0], x[..., 1:-1, 1:-1])
        ),
        conv=nn.Conv2d(4, 4, 3),
    ),
    "unused": lambda: Do(lambda self, x: x.sin(), idle=nn.Linear(3, 2), bare=torch.ones(2)),
    "dead end": lambda: Do(lambda self, x: (self.aside(x), x)[1], aside=nn.Conv2d(4, 2, 1)),
    "group norm": lambda: nn.Sequential(
        nn.GroupNorm(2, 4),
        nn.GELU(),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.InstanceNorm2d(4, affine=True),
    ),
    "batch norm": lambda: nn.Sequential(
        nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.BatchNorm2d(4, affine=False)
    ),
    "batch norm 1d": lambda: Do(lambda self, x: self.bn(x.flatten(2)), bn=nn.BatchNorm1d(4)),
    "in place": lambda: Do(
        lambda self, x: self.conv(x).mul_(2).add_(x).relu_(), conv=nn.Conv2d(4, 4, 3, padding=1)
    ),
    "zeros": lambda: padded("zeros", padding=(2, 1), stride=(2, 1), dilation=(1, 2)),
    "reflect": lambda: padded("reflect", padding=1),
    "replicate": lambda: padded("replicate", padding=2, stride=2),
    "circular": lambda: padded("circular", padding=(1, 2), groups=2),
    "same": lambda: nn.Sequential(
        nn.Conv2d(4, 4, (2, 4), padding="same"), padded("reflect", padding="same")
    ),
    "valid": lambda: padded("zeros", padding="valid", dilation=2, groups=4),
    "no bias": lambda: nn.Conv2d(4, 4, 3, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, stride=2),
    "1d and 3d": lambda: Do(
        conv1d_and_3d, one=nn.Conv1d(4, 4, 3, padding=1), three=nn.Conv3d(4, 4, 2)
    ),
    "linear over dimensions": lambda: Do(
        lambda self, x: self.lin(x.movedim(1, -1)).movedim(-1, 1), lin=nn.Linear(4, 4)
    ),
    "layer norm": lambda: nn.LayerNorm([4, 6, 6]),
    "prelu": lambda: nn.PReLU(4),
    "mha batch first": lambda: Do(
        attend(True, False), mha=nn.MultiheadAttention(4, 2, batch_first=True)
    ),
    "mha": lambda: Do(attend(False, False), mha=nn.MultiheadAttention(4, 2)),
    "mha weights": lambda: Do(
        attend(True, True), mha=nn.MultiheadAttention(4, 2, batch_first=True)
    ),
    "mha cross": lambda: Do(
        attend(True, False, True), mha=nn.MultiheadAttention(4, 2, batch_first=True)
    ),
    "mha kv bias": lambda: Do(
        attend(False, False), mha=nn.MultiheadAttention(4, 2, add_bias_kv=True, add_zero_attn=True)
    ),
    "mha apart": lambda: Do(
        lambda self, x: untokens(self.mha(tokens(x), tokens(x)[..., :3], tokens(x)[..., :2])[0]),
        mha=nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True),
    ),
    "encoder layer": lambda: Do(
        lambda self, x: untokens(self.enc(tokens(x))),
        enc=nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    ),
    "class token": lambda: Do(
        class_token,
        token=torch.randn(1, 1, 4),
        position=torch.randn(1, 37, 4),
        enc=nn.TransformerEncoderLayer(4, 1, 8, batch_first=True),
    ),
    "two layouts": lambda: Do(two_layouts, first=nn.Linear(4, 4), second=nn.Linear(4, 4)),
    "image by image": lambda: Do(by_image, conv=nn.Conv2d(4, 4, 3)),
    "windows": lambda: Do(windows, conv=nn.Conv2d(4, 4, 3, padding=1), norm=nn.GroupNorm(2, 4)),
    "outer and inner": lambda: Do(in_halves, lin=nn.Linear(4, 4)),
    "functional": lambda: Do(
        functional,
        kernel=torch.randn(4, 4, 2, 3),
        weight=torch.randn(4, 4),
        bias=torch.randn(4),
        gain=torch.randn(6, 6),
        offset=torch.randn(4, 1, 6),
    ),
    "added in place": lambda: Do(lambda self, x: (x * 1).add_(self.p), p=torch.randn(4, 6, 6)),
    "alpha": lambda: Do(lambda self, x: torch.add(x, self.p, alpha=3), p=torch.randn(4, 1, 1)),
    "subtracted": lambda: Do(
        lambda self, x: (x - self.p) / self.q, p=torch.randn(4, 1, 1), q=torch.ones(6)
    ),
    "repeated": lambda: Do(
        lambda self, x: torch.cat([x, self.p.repeat(len(x), 1, 2, 1)], 2), p=torch.randn(1, 4, 2, 6)
    ),
    "matmul": lambda: Do(lambda self, x: x @ self.p, p=torch.randn(6, 5)),
    "weight norm": lambda: weight_norm(nn.Conv2d(4, 4, 3)),
    "spectral norm": lambda: spectral_norm(nn.Conv2d(4, 4, 3)),
    "gate": lambda: Do(
        lambda self, x: x * (self.a(x).sigmoid() * self.b),
        a=nn.Conv2d(4, 4, 1),
        b=torch.randn(4, 1, 1),
    ),
    "scaled by a number": lambda: Do(
        lambda self, x: x * self.p + self.q, p=torch.tensor(0.7), q=torch.tensor([0.2])
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_trap(trap: str) -> None:
    torch.manual_seed(0)
    model = randomised(Net(TRAPS[trap]()))
    check(model, images(6))


WAYS = {
    "shared module": {"body.conv.weight": "pulled back", "stem.weight": "conv"},
    "used inside and outside": {"body.conv.weight": "pulled back", "body.conv.bias": "conv"},
    "used unseen": {"body.conv.weight": "image by image", "body.conv.bias": "conv"},
    "unused": {"body.idle.weight": "unused", "body.bare": "unused", "head.bias": "linear"},
    "mha": {"body.mha.in_proj_weight": "linear", "body.mha.out_proj.weight": "linear"},
    "mha cross": {"body.mha.in_proj_weight": "pulled back", "body.mha.out_proj.weight": "linear"},
    "class token": {"body.token": "expand", "body.position": "shift"},
    "windows": {"body.conv.weight": "conv", "body.norm.weight": "group norm"},
    "outer and inner": {"body.lin.weight": "linear"},
    "image by image": {"body.conv.weight": "image by image"},
    "transposed": {"body.weight": "image by image", "body.bias": "image by image"},
    "matmul": {"body.p": "image by image", "stem.weight": "conv"},
    "weight norm": {"body.parametrizations.weight.original0": "pulled back"},
    "gate": {"body.a.weight": "conv", "body.b": "scale"},
}


@pytest.mark.parametrize("trap", WAYS)
def test_way(trap: str) -> None:
    torch.manual_seed(0)
    ways = plan(randomised(Net(TRAPS[trap]())), images(6))
    assert {name: ways[name] for name in WAYS[trap]} == WAYS[trap]


def small() -> Any:
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        "bn1": nn.BatchNorm2d(8),
        "relu": nn.ReLU(inplace=True),
        "layer2": BasicBlock(8, 8),
        "layer3": BasicBlock(8, 8),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "fc": nn.Linear(8, 4),
    }
    return randomised(nn.Sequential(OrderedDict(parts)))


def vit() -> nn.Module:
    torch.manual_seed(0)
    return randomised(models.VisionTransformer(16, 4, 3, 2, 16, 24, num_classes=4))


def empirical(model: nn.Module, x: Tensor, **options: Any) -> dict[str, Tensor]:
    return fisher_diagonal(model, [(x, LABELS[: len(x)])], **options)


def close(found: dict[str, Tensor], wanted: dict[str, Tensor], bound: float = 1e-10) -> bool:
    return errors(found, wanted)[1] < bound


# Which parameters


@pytest.mark.parametrize(
    "names",
    [
        ["heads.head.bias"],
        ["encoder.layers.encoder_layer_2.self_attention.in_proj_weight"],
        ["class_token", "encoder.layers.encoder_layer_1.mlp.0.weight"],
        [],
    ],
)
def test_only_the_parameters_asked_for(names: list[str]) -> None:
    """With nothing below to train, torch would run its fused attention, which hides the layers."""
    model, x = vit(), images(16)
    wanted = fisher_loop(model, x, LABELS, "empirical")
    found = empirical(model, x, parameters=names)
    assert set(found) == set(names)
    if names:
        assert close(found, {name: wanted[name] for name in found})


class Wall(torch.autograd.Function):
    """The identity, which backward must not reach."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        raise AssertionError("backward went below the first parameter")


def test_backward_stops_at_the_first_parameter() -> None:
    model = small()
    model.layer3.register_forward_pre_hook(lambda module, args: (Wall.apply(*args),))
    names = [name for name, _ in model.named_parameters() if name.startswith(("layer3", "fc"))]
    empirical(model, images(32), parameters=names)
    with pytest.raises(AssertionError, match="below"):
        empirical(model, images(32), parameters=["conv1.weight"])


def test_unknown_parameter_is_refused_by_name() -> None:
    with pytest.raises(InvalidUsage, match=r"'fc\.wieght'"):
        empirical(small(), images(32), parameters=["fc.weight", "fc.wieght"])


# What it leaves behind


def test_the_model_is_left_as_it_was() -> None:
    model = small()
    model.train()
    model.layer2.eval()
    model.conv1.weight.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    keys = set(vars(model))
    found = empirical(model, images(32))
    assert modes == [module.training for module in model.modules()]
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all((p.grad is None) == (p is not model.fc.weight) for p in model.parameters())
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))
    assert torch.equal(random, torch.get_rng_state())
    assert keys == set(vars(model))
    assert torch.backends.mha.get_fastpath_enabled()
    assert float(found["conv1.weight"].sum()) > 0
    assert not any(value.requires_grad for value in found.values())


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    model = small().train()
    with pytest.raises(RuntimeError):
        empirical(model, images(32, channels=2))
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


# Batches


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_inside_no_grad(switch: Callable[[], Any]) -> None:
    model, x = small(), images(32)
    wanted = empirical(model, x)
    with switch():
        assert close(empirical(model, x), wanted)


def test_batches_of_any_length_and_layout() -> None:
    model, x = small(), images(32)
    wanted = fisher_loop(model, x, LABELS, "empirical")
    wide = x.repeat(1, 1, 1, 2)[..., ::2].contiguous(memory_format=torch.channels_last)
    wanted_wide = fisher_loop(model, wide, LABELS, "empirical")
    batches = [(x[n : n + 1], LABELS[n : n + 1]) for n in range(3)]
    assert close(fisher_diagonal(model, iter([*batches, (x[:0], LABELS[:0])])), wanted)
    assert close(empirical(model, x.transpose(2, 3).contiguous().transpose(2, 3)), wanted)
    assert close(empirical(model.to(memory_format=torch.channels_last), wide), wanted_wide)


@pytest.mark.parametrize("sizes", [(32, 48), (2, 32, 2), (32, 2)])
def test_images_of_several_sizes(sizes: tuple[int, ...]) -> None:
    model = small()
    found = fisher_diagonal(model, [(images(size), LABELS) for size in sizes])
    loops = [fisher_loop(model, images(size), LABELS, "empirical") for size in sizes]
    assert close(found, {name: sum(loop[name] for loop in loops) for name in loops[0]})


def test_what_only_meets_padding_is_not_multiplied() -> None:
    model, x, seen = small(), images(2), set[torch.Size]()  # maps of one pixel
    conv = model.layer3.conv1
    kernel = conv.weight
    hook = conv.register_forward_hook(lambda module, *_: seen.add(module.weight.shape))
    found = empirical(model, x)
    hook.remove()
    assert seen == {kernel.shape, torch.Size([8, 8])}
    assert conv.weight is kernel
    assert close(found, fisher_loop(model, x, LABELS, "empirical"))
    assert plan(model, x)["layer3.conv1.weight"] == "linear"
    assert plan(model, images(32))["layer3.conv1.weight"] == "conv"


class Gated(nn.Module):
    """Reads a kernel beside the convolution, which no answer shows while the head is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)
        nn.init.zeros_(self.fc.weight)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x) * self.conv.weight.square().sum()
        return self.fc(maps.mean((2, 3)))


class Named(nn.Module):
    """Calls its convolution by the name of the argument."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(input=x).mean((2, 3)))


@pytest.mark.parametrize("kind", [Gated, Named])
def test_kernels_that_cannot_be_cropped(kind: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = kind().double(), images(1)
    assert close(empirical(model, x), fisher_loop(model, x, LABELS, "empirical"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_scripted_modules() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Flatten(), nn.Linear(3, 4)).double()
    wanted = fisher_loop(model, images(1), LABELS, "empirical")
    assert close(empirical(torch.jit.script(model), images(1)), wanted)


def test_batches_that_ask_the_model() -> None:
    model = small().eval()
    sizes = (2, 32, 2)
    asked = ((x, model(x).argmax(dim=1)) for x in map(images, sizes))
    found = fisher_diagonal(model, asked)
    loops = [fisher_loop(model, x, model(x).argmax(dim=1), "empirical") for x in map(images, sizes)]
    assert close(found, {name: sum(loop[name] for loop in loops) for name in loops[0]})


def test_gradients_that_are_pulled_back_are_held_for_few_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(squares, "_HELD", 1)
    make, size = FAMILIES["swin_v2"]
    torch.manual_seed(0)
    check(randomised(make()), images(size))


def test_images_go_in_even_parts_that_keep_the_cpu_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small(), images(32)
    wanted = fisher_loop(model, x, LABELS, "empirical")
    asked = dict(model.named_parameters())
    for busy, rows in ((1 << 40, 3), (1, 1)):
        monkeypatch.setattr(squares, "_BUSY", busy)
        with at_rest(model):
            assert images_at_once(_plan(model, asked, x, {}), asked, x) == rows
        assert close(empirical(model, x), wanted)


# Monte Carlo


def test_mc_is_seeded_and_does_not_depend_on_the_batches() -> None:
    model, x = small(), images(32)
    options: dict[str, Any] = {"estimator": "mc", "draws": 3, "seed": 7}
    whole = empirical(model, x, **options)
    parts = fisher_diagonal(model, [(x[:1], LABELS[:1]), (x[1:], LABELS[1:])], **options)
    assert close(parts, whole)
    assert not close(empirical(model, x, estimator="mc", draws=3, seed=8), whole, 1e-3)


def test_mc_approaches_exact() -> None:
    torch.manual_seed(0)
    model, x = randomised(Net(nn.Conv2d(4, 4, 3))), images(6)
    found = empirical(model, x, estimator="mc", draws=1000)
    assert errors(found, fisher_loop(model, x, LABELS, "exact"))[0] < 0.05


# Precision


@pytest.mark.parametrize("name", FAMILIES)
def test_single_precision_is_no_worse_than_the_loop(name: str) -> None:
    make, size = FAMILIES[name]
    torch.manual_seed(0)
    model, x = randomised(make()), images(size)
    wanted = fisher_loop(model, x, LABELS, "empirical")
    model.float()
    looped = fisher_loop(model, x.float(), LABELS, "empirical")
    found = empirical(model, x.float())
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(value.is_contiguous() and float(value.min()) >= 0 for value in found.values())
    error, error_of_loop = (
        errors({key: value.double() for key, value in each.items()}, wanted)[0]
        for each in (found, looped)
    )
    assert error < 2 * error_of_loop


def test_half_precision_sums_in_single() -> None:
    torch.manual_seed(0)
    model, x = randomised(Net(nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)))), images(6)
    wanted = fisher_loop(model, x, LABELS, "empirical")
    found = empirical(model.bfloat16(), x.bfloat16())
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert errors({name: value.double() for name, value in found.items()}, wanted)[0] < 0.1


def test_under_autocast() -> None:
    torch.manual_seed(0)
    model, x = randomised(Net(nn.Conv2d(4, 4, 3))), images(6)
    wanted = fisher_loop(model, x, LABELS, "empirical")
    with torch.autocast("cpu", torch.bfloat16):
        found = empirical(model.float(), x.float())
    assert errors({name: value.double() for name, value in found.items()}, wanted)[0] < 0.1


# Models that cannot be forward_with_hooks, or have no gradient per image


def test_checkpointed_layers_go_image_by_image() -> None:
    torch.manual_seed(0)
    model = randomised(models.DenseNet(4, (2, 2), 4, num_classes=4, memory_efficient=True))
    check(model, images(32))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch statistics": (
        lambda: Net(nn.BatchNorm2d(4, track_running_stats=False)),
        "other images of the batch",
    ),
    "randomness": (lambda: Net(Do(lambda self, x: F.dropout(x, 0.5))), "from call to call"),
    "no logits": (lambda: Do(lambda self, x: (x, x)), "got tuple"),
    "a map of logits": (lambda: nn.Conv2d(3, 4, 1), r"got shape \(2, 4, 6, 6\)"),
    "NaN": (lambda: Net(Do(lambda self, x: x * self.p, p=torch.tensor(torch.nan))), "not finite"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refused(why: str) -> None:
    make, message = REFUSED[why]
    with pytest.raises(PbuError, match=message):
        empirical(make().double(), images(6))


def test_not_finite_images_are_refused() -> None:
    x = images(32)
    x[1, 0, 0, 0] = torch.nan
    with pytest.raises(PbuError, match=r"not finite, 'conv1\.weight'"):
        empirical(small(), x)


@pytest.mark.parametrize("labels", [[0, 4, 1], [0, -1, 1]])
def test_labels_without_a_class_are_refused(labels: list[int]) -> None:
    with pytest.raises(PbuError, match="4 classes"):
        fisher_diagonal(small(), [(images(32), torch.tensor(labels))])


def test_no_draws_are_refused() -> None:
    with pytest.raises(InvalidUsage, match="got 0"):
        empirical(small(), images(32), estimator="mc", draws=0)


@pytest.mark.parametrize("swap", [True, False])
def test_a_forward_pass_that_changes_is_refused(swap: bool) -> None:
    """Two layers that change places, or one that is left out, for large batches."""

    def moody(self: Any, x: Tensor) -> Any:
        if len(x) < 3:
            return self.b(self.a(x))
        return self.a(self.b(x)) if swap else self.a(x)

    torch.manual_seed(0)
    model = Net(Do(moody, a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1))).double()
    with pytest.raises(PbuError, match="the same for all images"):
        empirical(model, images(6))


def test_a_gpu_does_not_round_to_tf32_meanwhile_and_may_afterwards(monkeypatch):
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", True)
    seen: list[bool] = []
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    fisher_diagonal(model, [(torch.ones(1, 2), torch.tensor([0]))])
    assert seen
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="of a GPU")
@pytest.mark.parametrize("builder", ["resnet18", "densenet121", "convnext_tiny"])
def test_a_gpu_takes_the_rules_and_gives_what_the_loop_does(builder):
    """At 64 pixels, so that BatchNorm sees maps large enough for its own kernel."""
    torch.manual_seed(0)
    model = randomised(models.get_model(builder, num_classes=5)).double()
    x, labels = torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    wanted = fisher_loop(model, x, labels, "empirical")
    model, x, labels = model.float().cuda(), x.float().cuda(), labels.cuda()
    assert "image by image" not in plan(model, x).values()
    found = {n: t.double().cpu() for n, t in fisher_diagonal(model, [(x, labels)]).items()}
    assert errors(found, wanted)[0] < 1e-3
