"""Modules that use their parameters in unusual ways, and a classifier around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm


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


def attention_with_a_bias(self: Any, x: Tensor) -> Any:
    q, k, v = self.qkv(tokens(x)).unflatten(2, (3, 2, 2)).permute(2, 0, 3, 1, 4)
    return untokens(F.scaled_dot_product_attention(q, k, v, self.bias).transpose(1, 2).flatten(2))


def attention_to_one_key(self: Any, x: Tensor) -> Any:
    """The gradient of the queries is zero, and rounding leaves something of it."""
    t = tokens(x)
    key = self.kv(t.mean(1, keepdim=True))
    return untokens(F.softmax(self.q(t) @ key.transpose(1, 2), -1) @ key)


def twice(self: Any, x: Tensor) -> Any:
    return self.conv(self.conv(x).relu_())


def by_image(self: Any, x: Tensor) -> Any:
    return torch.stack([self.conv(image) for image in x])


def windows(self: Any, x: Tensor) -> Any:
    """Quarters of the image as images of their own: first all of one image, then of one place."""
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


# Modules that map [n, 4, 6, 6] to [n, 4, ...], by what is unusual about them.
UNUSUAL_USES: dict[str, Callable[[], nn.Module]] = {
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
    "addcmul": lambda: Do(
        lambda self, x: torch.addcmul(self.p, self.q, x.sin()),
        p=torch.randn(4, 1, 1),
        q=torch.randn(1, 4, 1, 1),
    ),
    "attention with a bias": lambda: Do(
        attention_with_a_bias, qkv=nn.Linear(4, 12), bias=torch.randn(2, 36, 36)
    ),
    "attention with a bias for its windows": lambda: Do(
        attention_with_a_bias, qkv=nn.Linear(4, 12), bias=torch.randn(1, 2, 1, 36)
    ),
    "attention to one key": lambda: Do(attention_to_one_key, q=nn.Linear(4, 4), kv=nn.Linear(4, 4)),
    "batch norm before tokens": lambda: Do(
        lambda self, x: untokens(self.lin(tokens(self.bn(self.conv(x))))),
        conv=nn.Conv2d(4, 4, 3, groups=4),
        bn=nn.BatchNorm2d(4),
        lin=nn.Linear(4, 4),
    ),
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
