"""Crop convolution kernels to the region that ever meets a pixel.

On small images the last stage has feature maps of one or two pixels, where most entries of a 3x3
kernel only ever meet padding. Of the 13 M weights in ResNet-34's last stage only 2 M influence the
logits for images of 28x28. The gradient of the other weights is zero at every step, yet it would
be computed, squared and used for updates.

A kernel whose used region is as large as the feature map is a matrix, and faster as one.

The used region follows from the sizes alone. Whether anything else in the network needs the unused
weights is found by trying.
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
from pbu_cli.models.hooks import InputHook, first_argument, forward_hooks


@dataclass(frozen=True)
class KernelCrop:
    """The used region of the kernel [out, in, h, w] of the convolution at `path`.

    image: height and width of the feature maps that the convolution takes. used: the used rows and
    columns of the kernel. padding: the padding with which the region alone gives the same output.
    matrix: whether the region covers the whole map and is applied at one position only. The region
    is then stored as [out, in * h * w] and applied as a matrix product, whose backward pass takes
    a third of the convolution's time.
    """

    path: str
    image: tuple[int, ...]
    used: tuple[slice, slice]
    padding: tuple[int, int]
    matrix: bool

    def of(self, kernel: Tensor) -> Tensor:
        """The used region of a tensor of the kernel's shape."""
        region = kernel[:, :, self.used[0], self.used[1]]
        return region.flatten(1) if self.matrix else region

    def put(self, region: Tensor, kernel: Tensor) -> None:
        """Copy `region` into the used region of a tensor of the kernel's shape."""
        place = kernel[:, :, self.used[0], self.used[1]]
        place.copy_(region.view(place.shape))

    def whole(self, region: Tensor, like: Tensor) -> Tensor:
        """A tensor of the shape of the kernel `like` that is zero outside its used region."""
        kernel = region.new_zeros(like.shape)
        self.put(region, kernel)
        return kernel


Crops = Mapping[str, KernelCrop]  # by the name of the kernel's parameter
NO_CROPS: Crops = MappingProxyType({})


def used_kernel_region(
    size: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[slice, int] | None:
    """The used region of a kernel along one dimension of a feature map of `size` pixels.

    Returns the slice from the first to the last kernel entry that ever meets a pixel, and the
    padding with which that slice alone gives the same output. Returns None where no such padding
    exists.

    >>> used_kernel_region(1, kernel=3, stride=1, padding=1, dilation=1)
    (slice(1, 2, None), 0)
    >>> used_kernel_region(2, kernel=3, stride=2, padding=1, dilation=1)
    (slice(1, 3, None), 0)
    >>> used_kernel_region(9, kernel=3, stride=1, padding=1, dilation=1)
    (slice(0, 3, None), 1)
    """

    def positions(entries: int, padding: int) -> int:
        return (size + 2 * padding - dilation * (entries - 1) - 1) // stride + 1

    outputs = positions(kernel, padding)
    used = [
        entry
        for entry in range(kernel)
        if any(0 <= at * stride + entry * dilation - padding < size for at in range(outputs))
    ]
    if not used:
        return None
    remaining = padding - used[0] * dilation
    region = slice(used[0], used[-1] + 1)
    fits = remaining >= 0 and positions(region.stop - region.start, remaining) == outputs
    return (region, remaining) if fits else None


@torch.no_grad()
def find_crops(model: nn.Module, x: Tensor) -> dict[str, KernelCrop]:
    """The crops of the model's kernels for inputs of the size of `x`, by parameter name.

    x: a few inputs as the model takes them. The model has to be in eval mode. A kernel is only
    listed if part of it is unused or if its used region is a matrix. There are no crops at all if
    the cropped model's logits differ from the model's.

    >>> model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1)).eval()
    >>> [list(find_crops(model, torch.ones(1, 1, side, side))) for side in (1, 5)]
    [['0.weight'], []]
    """
    sizes: dict[str, list[tuple[int, ...]]] = {path: [] for path in _croppable(model)}
    if not sizes:
        return {}
    recorders = ((model.get_submodule(path), _recorder(found)) for path, found in sizes.items())
    with forward_hooks(inputs=recorders):
        logits = model(x)
    crops = {}
    for path, visited in sizes.items():
        crop = _crop(path, model.get_submodule(path), visited[0]) if len(visited) == 1 else None
        if crop is not None:
            crops[f"{path}.weight" if path else "weight"] = crop
    return crops if crops and _same_logits(model, crops, x, logits) else {}


def cropped_parameters(model: nn.Module, crops: Crops) -> dict[str, nn.Parameter]:
    """Copies of the used regions, by the names of their kernels."""
    return {name: _region_of(model.get_parameter(name), crop) for name, crop in crops.items()}


@contextmanager
def cropped(
    model: nn.Module, crops: Crops, regions: Mapping[str, nn.Parameter] | None = None
) -> Iterator[None]:
    """Within this context the model's kernels are replaced by their used regions.

    The regions are parameters under the kernels' names. At the end the whole kernels are back,
    with the values that the regions have by then. Nothing else changes. The model takes only
    inputs of the size that the crops were found for.

    regions: from `cropped_parameters`. If they are given, they are used in place of new copies and
    nothing is written to the whole kernels.
    """
    with ExitStack() as replaced:
        for name, crop in crops.items():
            convolution = model.get_submodule(crop.path)
            replaced.enter_context(
                _one_cropped(convolution, crop, regions[name] if regions else None)
            )
        yield


def _region_of(kernel: Tensor, crop: KernelCrop) -> nn.Parameter:
    region = crop.of(kernel.detach()).clone(memory_format=torch.contiguous_format)
    return nn.Parameter(region, requires_grad=kernel.requires_grad)


@contextmanager
def _one_cropped(
    convolution: nn.Module, crop: KernelCrop, region: nn.Parameter | None
) -> Iterator[None]:
    assert isinstance(convolution, nn.Conv2d)
    kernel, padding = convolution.weight, convolution.padding

    def check_size(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        size = first_argument(args, kwargs).shape[-2:]
        if size != crop.image:
            raise PbuError(
                f"{printable(crop.path)}: the size of its input changes from call to call; expected"
                f" {crop.image}, got {tuple(size)}: such a network cannot be unlearned, please"
                " report it"
            )

    convolution.weight = _region_of(kernel, crop) if region is None else region
    convolution.padding = crop.padding
    if crop.matrix:
        convolution.forward = _matrix_product(convolution)  # type: ignore[method-assign,assignment]
    try:
        with forward_hooks(inputs=[(convolution, check_size)]):
            yield
    finally:
        if crop.matrix:
            del convolution.forward
        if region is None:
            with torch.no_grad():
                crop.put(convolution.weight, kernel)
        convolution.weight, convolution.padding = kernel, padding


def _matrix_product(convolution: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """The forward of a convolution whose weight is stored as a matrix."""
    return lambda x: F.linear(x.flatten(1), convolution.weight, convolution.bias)[:, :, None, None]


def _croppable(model: nn.Module) -> list[str]:
    """Paths of the plain convolutions whose kernel is theirs alone.

    A subclass, a replaced forward or a second user may do anything with the kernel.
    """
    uses: dict[int, int] = {}  # by id of the parameter: how many names it has in the model
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    return [
        path
        for path, module in model.named_modules()
        if type(module) is nn.Conv2d
        and "forward" not in module.__dict__
        and (kernel := module._parameters.get("weight")) is not None
        and uses[id(kernel)] == 1
    ]


def _recorder(sizes: list[tuple[int, ...]]) -> InputHook:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:  # a convolution whose input is passed by name is not cropped
            sizes.append(tuple(args[0].shape[-2:]))

    return record


def _crop(path: str, convolution: nn.Module, image: tuple[int, ...]) -> KernelCrop | None:
    assert isinstance(convolution, nn.Conv2d)
    if convolution.padding_mode != "zeros" or isinstance(convolution.padding, str):
        return None
    regions = [
        used_kernel_region(*of_side)
        for of_side in zip(
            image, convolution.kernel_size, convolution.stride, convolution.padding,
            convolution.dilation, strict=True,
        )
    ]  # fmt: skip
    rows, columns = regions
    if rows is None or columns is None:
        return None
    used, padding = (rows[0], columns[0]), (rows[1], columns[1])
    sides = (used[0].stop - used[0].start, used[1].stop - used[1].start)
    matrix = convolution.groups == 1 and sides == image and padding == (0, 0)
    crop = KernelCrop(path, image, used, padding, matrix)
    return crop if matrix or sides != convolution.kernel_size else None


def _same_logits(model: nn.Module, crops: Crops, x: Tensor, logits: Any) -> bool:
    """Whether the cropped model gives the logits that the whole model gave for x."""
    try:
        with cropped(model, crops):
            return torch.allclose(model(x), logits, 1e-4, 1e-5)
    except Exception:  # user code that reads a kernel may raise anything
        return False
