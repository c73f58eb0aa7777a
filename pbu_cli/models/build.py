"""An architecture and its tensors into a loaded module."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pbu_cli.errors import InvalidUsage
from pbu_cli.models.registry import AUXILIARY, Architecture, stem


def build(architecture: Architecture) -> nn.Module:
    """The torchvision module of an architecture, on the CPU, in eval mode.

    Its weights are uninitialised memory, to be overwritten by `load`; its other buffers are what
    the constructor computes.

    Raises InvalidUsage for an image size that the architecture does not come in.
    """
    with WeightsOnMeta():
        model = _construct(architecture, init_weights=False)
    _allocate(model)
    return model.eval()


def initialised(architecture: Architecture, seed: int) -> nn.Module:
    """The same with torchvision's own initial weights, drawn by `seed`: a network to train.

    Raises InvalidUsage as `build` does.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _construct(architecture, init_weights=True).eval()


def load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into the module, cast to the module's own dtypes.

    Raises RuntimeError if names or shapes differ, except that BatchNorm counters which an old
    file lacks become 0.
    """
    # MNASNet refuses a state without the version that `state_dict()` keeps as an attribute, which
    # safetensors files do not carry. Only the module's own version is given: without theirs the
    # BatchNorms in it accept files from before `num_batches_tracked`.
    state = _Versioned(tensors)
    state._metadata = {"": {"version": model._version}}
    model.load_state_dict(state)


class _Versioned(dict[str, Tensor]):
    """A state dict with the version table that `Module.load_state_dict` looks for."""

    _metadata: dict[str, dict[str, int]]


# Of meta tensors torch works these out in Python, by means of its compiler (the last two: 2.11).
_BY_THE_COMPILER = {Tensor.normal_, nn.init.normal_, Tensor.erfinv_, Tensor.clamp_}


class WeightsOnMeta(TorchFunctionMode):
    """Within it `torch.empty` makes meta tensors, so that layers cost no time to initialise.

    Every layer of torch allocates its weights by `torch.empty`, and filling a meta tensor does
    nothing. `with torch.device("meta")` would take the constructors' arithmetic along, which
    RegNet and every non-persistent buffer need to be real.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _BY_THE_COMPILER:
            weight: Tensor = args[0] if args else kwargs["tensor"]
            if weight.is_meta:
                return weight
        if func is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """While it lasts, torchvision can be imported without torch's compiler, twice as quickly.

    All of torchvision stands behind any of its models, and its RoIAlign, which no classifier has,
    wants one function of the compiler. It gets one that looks for the real one when called.
    """
    name = "torch._dynamo.utils"
    if name in sys.modules or "torchvision" in sys.modules:
        yield
        return
    sys.modules[name] = _Later(name)
    try:
        yield
    finally:
        if isinstance(sys.modules.get(name), _Later):
            del sys.modules[name]


class _Later(ModuleType):
    """A module that is imported when something is asked of it but one function, and that one when
    it is called."""

    def __getattr__(self, attribute: str) -> Any:
        if attribute == "is_compile_supported":
            return lambda *args: getattr(self._real(), attribute)(*args)
        if attribute.startswith("__"):  # importlib asks how it was loaded
            raise AttributeError(attribute)
        return getattr(self._real(), attribute)

    def _real(self) -> ModuleType:
        if isinstance(sys.modules.get(self.__name__), _Later):
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
        # MaxViT takes height and width, and under another name.
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
    """Give the first convolution the image's channels and, if so, the small-image geometry."""
    path = stem(architecture.name).removesuffix(".weight")
    conv = model.get_submodule(path)
    assert isinstance(conv, nn.Conv2d)
    if architecture.small_stem:
        conv = nn.Conv2d(architecture.in_channels, conv.out_channels, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
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


def _allocate(model: nn.Module) -> None:
    """Real memory, uninitialised, for every parameter on the meta device."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                memory = torch.empty(parameter.shape, dtype=parameter.dtype)
                setattr(module, name, nn.Parameter(memory))
