"""Kernels cropped to the taps that ever meet the image.

On small images the last stage sees maps of one or two pixels, where most taps of a 3x3 kernel only
ever meet padding: of ResNet-34's last stage on 28x28 images 2 M weights out of 13 M take part in
anything. The others' gradient is zero at every step, yet it would be computed, squared and
descended.

A kernel whose live part is as large as the map is a matrix, and cheaper as one.

Which taps are live follows from the sizes alone. Whether nothing else in the network uses a dead
one is found by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pbu_cli.errors import PbuError, printable


@dataclass(frozen=True)
class KernelCrop:
    """The live part of the kernel [out, in, h, w] of the convolution at `path`, which sees maps of
    `image` (height, width); `padding` is what the part needs in place of the kernel's own.

    matrix: the part meets the whole map in one place. It is then [out, in * h * w], and what it
    does a matrix product, whose backward pass takes a third of the convolution's time.
    """

    path: str
    image: tuple[int, ...]
    taps: tuple[slice, slice]
    padding: tuple[int, int]
    matrix: bool

    def of(self, kernel: Tensor) -> Tensor:
        """The live part of something of the kernel's shape."""
        part = kernel[:, :, self.taps[0], self.taps[1]]
        return part.flatten(1) if self.matrix else part

    def put(self, part: Tensor, kernel: Tensor) -> None:
        """Have `part` for the live part of something of the kernel's shape."""
        place = kernel[:, :, self.taps[0], self.taps[1]]
        place.copy_(part.view(place.shape))

    def whole(self, part: Tensor, like: Tensor) -> Tensor:
        """Something of the shape of the kernel `like`: zero but for its live part."""
        kernel = part.new_zeros(like.shape)
        self.put(part, kernel)
        return kernel


Crops = Mapping[str, KernelCrop]  # by the name of the kernel's parameter
NO_CROPS: Crops = MappingProxyType({})


def used_kernel_region(
    size: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[slice, int] | None:
    """The taps between the first and the last that ever meet one of `size` pixels, and the padding
    with which they alone give the same; None where there is no such padding.

    >>> used_kernel_region(1, kernel=3, stride=1, padding=1, dilation=1)
    (slice(1, 2, None), 0)
    >>> used_kernel_region(2, kernel=3, stride=2, padding=1, dilation=1)
    (slice(1, 3, None), 0)
    >>> used_kernel_region(9, kernel=3, stride=1, padding=1, dilation=1)
    (slice(0, 3, None), 1)
    """

    def places(taps: int, padding: int) -> int:
        return (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1

    outputs = places(kernel, padding)
    live = [
        tap
        for tap in range(kernel)
        if any(0 <= at * stride + tap * dilation - padding < size for at in range(outputs))
    ]
    if not live:
        return None
    left = padding - live[0] * dilation
    taps = slice(live[0], live[-1] + 1)
    fits = left >= 0 and places(taps.stop - taps.start, left) == outputs
    return (taps, left) if fits else None


@torch.no_grad()
def find_crops(model: nn.Module, x: Tensor) -> dict[str, KernelCrop]:
    """What of the model's kernels takes part in its answers to inputs of the size of `x`'s, by
    parameter; only those of which not all does, or that are no more than a matrix.

    x: a few inputs as the model takes them. Needs eval mode.

    >>> model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1)).eval()
    >>> [list(find_crops(model, torch.ones(1, 1, side, side))) for side in (1, 5)]
    [['0.weight'], []]
    """
    sizes: dict[str, list[tuple[int, ...]]] = {}
    uses: dict[int, int] = {}  # of each parameter, in how many places it stands
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    with ExitStack() as hooks:
        for path, module in model.named_modules():
            # A subclass may do anything with its kernel, and so may who shares it.
            if type(module) is not nn.Conv2d or "forward" in module.__dict__:
                continue
            kernel = module._parameters.get("weight")
            if kernel is not None and uses[id(kernel)] == 1:
                sizes[path] = []
                hooks.enter_context(module.register_forward_pre_hook(_recorder(sizes[path])))
        answers = model(x) if sizes else None
    crops = {}
    for path, seen in sizes.items():
        crop = _crop(path, model.get_submodule(path), seen[0]) if len(seen) == 1 else None
        if crop is not None:
            crops[f"{path}.weight" if path else "weight"] = crop
    return crops if crops and _same(model, crops, x, answers) else {}


def cropped_parameters(model: nn.Module, crops: Crops) -> dict[str, nn.Parameter]:
    """Copies of the live parts, by the names of their kernels."""
    return {name: _part(model.get_parameter(name), crop) for name, crop in crops.items()}


@contextmanager
def cropped(
    model: nn.Module, crops: Crops, parts: Mapping[str, nn.Parameter] | None = None
) -> Iterator[None]:
    """While it lasts the kernels are their live parts, parameters under the same names; afterwards
    they are the whole ones again, with the parts as they are by then.

    Nothing else changes. The model takes inputs of the one size the crops were found for. Where
    `parts`, from `cropped_parameters`, are given, those are put in, and nothing is carried back.
    """
    with ExitStack() as restored:
        for name, crop in crops.items():
            conv, part = model.get_submodule(crop.path), parts[name] if parts else None
            restored.enter_context(_one_cropped(conv, crop, part))
        yield


def _part(whole: Tensor, crop: KernelCrop) -> nn.Parameter:
    part = crop.of(whole.detach()).clone(memory_format=torch.contiguous_format)
    return nn.Parameter(part, requires_grad=whole.requires_grad)


@contextmanager
def _one_cropped(conv: nn.Module, crop: KernelCrop, part: nn.Parameter | None) -> Iterator[None]:
    assert isinstance(conv, nn.Conv2d)
    whole, padding = conv.weight, conv.padding
    conv.weight = _part(whole, crop) if part is None else part
    conv.padding = crop.padding
    if crop.matrix:
        conv.forward = _product(conv)  # type: ignore[method-assign,assignment]

    def check(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args[0].shape[-2:] != crop.image:
            raise PbuError(
                f"{printable(crop.path)}: the size of its input changes from call to call; expected"
                f" {crop.image}, got {tuple(args[0].shape[-2:])}: such a network cannot be"
                " unlearned, please report it"
            )

    hook = conv.register_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()
        if crop.matrix:
            del conv.forward
        if part is None:
            with torch.no_grad():
                crop.put(conv.weight, whole)
        conv.weight, conv.padding = whole, padding


def _product(conv: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """What a convolution does whose weight is a matrix."""
    return lambda x: F.linear(x.flatten(1), conv.weight, conv.bias)[:, :, None, None]


def _crop(path: str, conv: nn.Module, image: tuple[int, ...]) -> KernelCrop | None:
    assert isinstance(conv, nn.Conv2d)
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    found = [
        used_kernel_region(*of_side)
        for of_side in zip(
            image, conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True
        )
    ]
    if found[0] is None or found[1] is None:
        return None
    (rows, above), (columns, left) = found[0], found[1]
    live = rows.stop - rows.start, columns.stop - columns.start
    matrix = conv.groups == 1 and live == image and (above, left) == (0, 0)
    crop = KernelCrop(path, image, (rows, columns), (above, left), matrix)
    return crop if matrix or live != conv.kernel_size else None


def _same(model: nn.Module, crops: Crops, x: Tensor, answers: Any) -> bool:
    """Whether the cropped model answers as the whole one does."""
    try:
        with cropped(model, crops):
            return torch.allclose(model(x), answers, 1e-4, 1e-5)
    except Exception:  # code of the user's own that reads a kernel may raise anything
        return False


def _recorder(sizes: list[tuple[int, ...]]) -> Any:
    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args:  # who names the argument is left as he is
            sizes.append(tuple(args[0].shape[-2:]))

    return record
