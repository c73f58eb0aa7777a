"""From an architecture of torchvision to a module without the checkpoint's weights."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pbu_cli.errors import InvalidUsage, printable
from pbu_cli.images.resizing import ResizeAndCrop
from pbu_cli.models.sources.construction import WeightsOnMeta, allocate
from pbu_cli.models.sources.torchvision_registry import AUXILIARY, Architecture, stem

# timm's names of what torchvision's networks have between their last features and their head.
AVERAGE, TOKEN = ("avg", "fast", "fastavg"), ("token",)
# Arguments of timm's constructors that change nothing in eval mode, or that the tensors tell.
HARMLESS_ARGUMENTS = (
    r"pretrained|num_classes|in_chans|img_size|weight_init|zero_init_last|(\w+_)?drop\w*"
)


def built_otherwise(
    name: str, global_pools: Sequence[str], model_args: Mapping[str, Any]
) -> tuple[str, Any] | None:
    """The first key, with its value, for which timm builds another network than torchvision's.

    torchvision's networks have no options for what stands in timm's `global_pool` and
    `model_args`, so that without these another function would be computed in silence.

    >>> built_otherwise("resnet18", ["avg"], {"drop_rate": 0.1})
    >>> built_otherwise("resnet18", [], {"output_stride": 8})
    ('model_args', {'output_stride': 8})
    """
    built = TOKEN if name.startswith("vit_") else AVERAGE
    arguments = {
        key: value
        for key, value in model_args.items()
        if value is not None and not re.fullmatch(HARMLESS_ARGUMENTS, key)
    }
    pools = [*global_pools, arguments.pop("global_pool", built[0])]
    found: list[tuple[str, Any]] = [("global_pool", pool) for pool in pools if pool not in built]
    if arguments:
        found.append(("model_args", arguments))
    return next(iter(found), None)


def build(architecture: Architecture) -> nn.Module:
    """The torchvision module of an architecture, on the CPU, in eval mode.

    Its weights are uninitialised memory that `load.load_tensors` has to overwrite. Its other
    buffers hold what the constructor computed.

    Raises InvalidUsage for an image size that the architecture does not support.
    """
    with WeightsOnMeta():
        model = _construct(architecture, init_weights=False)
    allocate(model)
    return model.eval()


def preset(name: str, weights: str) -> tuple[ResizeAndCrop, tuple[float, ...], tuple[float, ...]]:
    """The resizing, mean and std with which torchvision evaluates these weights of a classifier.

    Raises InvalidUsage where torchvision has no such weights.
    """
    with _without_compiler():
        from torchvision.models import get_model_weights

    table = get_model_weights(name)
    if weights not in table.__members__:
        raise InvalidUsage(
            f"--preset {printable(weights, 60)}: torchvision has no such weights of {name};"
            f" expected {' or '.join(table.__members__)}, or none for pbu's own way"
        )
    found = table[weights].transforms()
    (resized,), (side,) = found.resize_size, found.crop_size
    way = ResizeAndCrop((resized, resized), (side, side), found.interpolation.value)
    return way, tuple(found.mean), tuple(found.std)


def initialised(architecture: Architecture, seed: int) -> nn.Module:
    """The same module with torchvision's initial weights, drawn with `seed`: a network to train.

    Raises InvalidUsage for an image size that the architecture does not support.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _construct(architecture, init_weights=True).eval()


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Within this context torchvision is imported without torch's compiler, twice as fast.

    Importing any of its models imports all of torchvision. Its RoIAlign, which no classifier uses,
    imports one function of the compiler. Here it gets a stand-in that imports the real function
    when it is called.
    """
    name = "torch._dynamo.utils"
    if name in sys.modules or "torchvision" in sys.modules:
        yield
        return
    sys.modules[name] = _LateImport(name)
    try:
        yield
    finally:
        if isinstance(sys.modules.get(name), _LateImport):
            del sys.modules[name]


class _LateImport(ModuleType):
    """A module that is imported on first access to an attribute; `is_compile_supported` imports it
    only when it is called."""

    def __getattr__(self, attribute: str) -> Any:
        if attribute == "is_compile_supported":
            return lambda *args: getattr(self._real(), attribute)(*args)
        if attribute.startswith("__"):  # importlib reads these to learn how the module was loaded
            raise AttributeError(attribute)
        return getattr(self._real(), attribute)

    def _real(self) -> ModuleType:
        if isinstance(sys.modules.get(self.__name__), _LateImport):
            del sys.modules[self.__name__]
        return import_module(self.__name__)


def _construct(architecture: Architecture, *, init_weights: bool) -> nn.Module:
    with _without_compiler():
        from torchvision.models import get_model

    name = architecture.name
    options: dict[str, Any] = {"num_classes": architecture.num_classes}
    if name in AUXILIARY:
        options["aux_logits"] = architecture.aux_logits
        options["init_weights"] = init_weights
        options["transform_input"] = False
    if architecture.image_size is not None:
        # MaxViT takes height and width, under another name.
        size = architecture.image_size
        options |= {"input_size": (size, size)} if "maxvit" in name else {"image_size": size}
    try:
        model: nn.Module = get_model(name, weights=None, **options)
    except ValueError as error:
        if architecture.image_size is None:
            raise
        raise InvalidUsage(
            f"--size {architecture.image_size}: {name} does not come in this size: {error}"
        ) from error
    _adapt_stem(model, architecture)
    return model


def _adapt_stem(model: nn.Module, architecture: Architecture) -> None:
    """Give the first convolution the images' number of channels, and the small-image geometry where
    the architecture has it."""
    path = stem(architecture.name).removesuffix(".weight")
    conv = model.get_submodule(path)
    assert isinstance(conv, nn.Conv2d)
    if architecture.small_stem:
        conv = nn.Conv2d(architecture.in_channels, conv.out_channels, 3, padding=1, bias=False)
        set_stem_pool(model, pooled=False)
    elif architecture.in_channels != conv.in_channels:
        conv = nn.Conv2d(
            architecture.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            bias=conv.bias is not None,
        )
    model.set_submodule(path, conv)


def set_stem_pool(model: nn.Module, pooled: bool) -> None:
    """Give a torchvision ResNet with a 3x3 stem the max-pool after it, or take it away.

    The tensors are the same with and without it.
    """
    model.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if pooled else nn.Identity()
