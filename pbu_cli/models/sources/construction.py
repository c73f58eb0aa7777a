"""Build modules whose weights take no memory, and no more of them than a checkpoint can fill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from pbu_cli.errors import CheckpointError

SPARE = 64  # parameters that a network may have beyond the tensors of its file


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
def bounded(subject: str, tensors: int, numbers: int) -> Iterator[None]:
    """Within this context a module that is built may not outgrow the file that is to fill it.

    subject: what is built, for the message. tensors, numbers: of the file. Raises CheckpointError
    from within the constructor as soon as more than twice as many were registered, so that a
    description of a gigantic network takes neither time nor memory. Constructors may replace
    parameters, so that some more are allowed.
    """
    found = [0, 0]

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None:
            return
        found[0] += 1
        found[1] += parameter.numel()
        if found[0] > 2 * tensors + SPARE or found[1] > 2 * numbers + (1 << 20):
            raise CheckpointError(
                f"{subject}: another network than the checkpoint's: it has more than {found[0]:,}"
                f" tensors and {found[1]:,} numbers, and the file has {tensors:,} and {numbers:,};"
                " expected the name or the config.json of this checkpoint"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def without_caches(model: nn.Module) -> None:
    """Make layers compute their attention biases anew in every forward pass.

    LeViT and networks like it (in timm and in transformers) keep them from the first pass in eval
    mode on, so that a change of the parameters that they come from would have no effect.
    """
    for module in model.modules():
        if hasattr(module, "attention_bias_cache"):
            module.register_forward_pre_hook(_without_cache)


def _without_cache(module: nn.Module, args: Any) -> None:
    """Empty the cache. A cache of pbu's own would be lost when the network moves to a device."""
    module.attention_bias_cache = {}  # type: ignore[assignment]


def allocate(model: nn.Module) -> None:
    """Give every parameter on the meta device real, uninitialised memory."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                memory = torch.empty(parameter.shape, dtype=parameter.dtype)
                setattr(module, name, nn.Parameter(memory))
