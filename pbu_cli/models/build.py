"""From an architecture, or from the user's own function, to a module without the checkpoint's
weights.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pbu_cli.errors import InvalidUsage, printable
from pbu_cli.models.registry import AUXILIARY, Architecture, stem


def build(architecture: Architecture) -> nn.Module:
    """The torchvision module of an architecture, on the CPU, in eval mode.

    Its weights are uninitialised memory that `load.load_tensors` has to overwrite. Its other
    buffers hold what the constructor computed.

    Raises InvalidUsage for an image size that the architecture does not support.
    """
    with WeightsOnMeta():
        model = _construct(architecture, init_weights=False)
    _allocate(model)
    return model.eval()


def initialised(architecture: Architecture, seed: int) -> nn.Module:
    """The same module with torchvision's initial weights, drawn with `seed`: a network to train.

    Raises InvalidUsage for an image size that the architecture does not support.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _construct(architecture, init_weights=True).eval()


def user_module(arch: str) -> nn.Module:
    """The module that the user's `--arch FILE.py:FUNCTION` or `pkg.mod:FUNCTION` returns.

    Raises InvalidUsage where the function cannot be imported or called, or does not return a
    module.
    """
    function = _imported_function(arch)
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results
            module = function()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InvalidUsage(
            f"--arch {printable(arch)}: calling it without arguments raised"
            f" {type(error).__name__}: {printable(error)}; expected a function that returns the"
            " module"
        ) from None
    if not isinstance(module, nn.Module):
        raise InvalidUsage(
            f"--arch {printable(arch)}: returned a {type(module).__name__}, expected a"
            " torch.nn.Module"
        )
    return module


# For meta tensors torch computes these in Python and imports its compiler for it (the last two
# since torch 2.11).
_NEEDS_COMPILER = {Tensor.normal_, nn.init.normal_, Tensor.erfinv_, Tensor.clamp_}


class WeightsOnMeta(TorchFunctionMode):
    """Within this mode `torch.empty` makes meta tensors, so that layers take no time to initialise.

    Every layer of torch allocates its weights by `torch.empty`, and filling a meta tensor does
    nothing. `with torch.device("meta")` would also move the constructors' arithmetic to the meta
    device, but RegNet and every non-persistent buffer need real numbers.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _NEEDS_COMPILER:
            weight: Tensor = args[0] if args else kwargs["tensor"]
            if weight.is_meta:
                return weight
        if func is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


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
    """Give every parameter on the meta device real, uninitialised memory."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                memory = torch.empty(parameter.shape, dtype=parameter.dtype)
                setattr(module, name, nn.Parameter(memory))


class _SourceOnlyLoader(SourceFileLoader):
    """Runs the source file itself. Bytecode beside the file is not read, since anyone may have put
    it there, and none is written, since the folder is the user's."""

    def path_stats(self, path: str | bytes) -> NoReturn:
        raise OSError  # importlib uses no bytecode if it cannot tell the age of the source


def _imported_function(arch: str) -> Callable[..., Any]:
    place, _, function = arch.rpartition(":")
    shown = printable(arch)
    try:
        if place.endswith(".py"):
            path = Path(place)
            if not path.is_file():
                raise InvalidUsage(f"--arch {shown}: no file {printable(place)}")
            name = f"pbu_arch_{path.stem}"
            loader = _SourceOnlyLoader(name, place)
            spec = importlib.util.spec_from_file_location(name, place, loader=loader)
            assert spec is not None
            source = importlib.util.module_from_spec(spec)
            sys.modules[name] = source  # dataclasses and pickle look their module up here
            with redirect_stdout(sys.stderr):
                loader.exec_module(source)
        elif re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", place):
            source = import_module(place)
        else:
            raise InvalidUsage(f"--arch {shown}: expected FILE.py:FUNCTION or pkg.mod:FUNCTION")
        found = getattr(source, function, None)
    except InvalidUsage:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InvalidUsage(
            f"--arch {shown}: importing it raised {type(error).__name__}: {printable(error)}"
        ) from None
    if not callable(found):
        raise InvalidUsage(f"--arch {shown}: {printable(place)} has no function {function}")
    return found  # type: ignore[no-any-return]
