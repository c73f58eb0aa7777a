"""Forward hooks that are always removed, and the choice of the parameters that get gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

InputHook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
OutputHook = Callable[[nn.Module, Any], None]


@contextmanager
def forward_hooks(
    *,
    inputs: Iterable[tuple[nn.Module, InputHook]] = (),
    outputs: Iterable[tuple[nn.Module, OutputHook]] = (),
) -> Iterator[None]:
    """Call hooks whenever their modules are called. All hooks are removed at the end, also after
    an error.

    inputs: pairs of a module and hook(module, args, kwargs), which is called before the module's
    forward; `first_argument` gives the module's input. outputs: pairs of a module and
    hook(module, output), which is called after it.
    """
    with ExitStack() as handles:
        for module, before in inputs:
            handles.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
        for module, after in outputs:
            handles.enter_context(module.register_forward_hook(_output_hook(after)))
        yield


def _output_hook(hook: OutputHook) -> Callable[[nn.Module, Any, Any], None]:
    return lambda module, args, output: hook(module, output)


@contextmanager
def capture_input(model: nn.Module, path: str) -> Iterator[list[Tensor]]:
    """A list that receives the input of the module at `path` on every call: float32 [n, d].

    Feature maps and tokens are averaged over their positions (`averaged`). Gradients flow through
    the captured tensors.
    """
    captured: list[Tensor] = []

    def capture(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.append(averaged(first_argument(args, kwargs).float(), 1))

    with forward_hooks(inputs=[(model.get_submodule(path), capture)]):
        yield captured


@contextmanager
def capture_output(
    model: nn.Module, path: str, transform: Callable[[Tensor], Tensor] = Tensor.clone
) -> Iterator[list[Tensor]]:
    """A list that receives the transformed output of the module at `path` on every call.

    Outputs that are not tensors are skipped. `transform` has to return new memory, because a later
    layer may change the output in place.

    >>> model = nn.Sequential(nn.ReLU(), nn.Flatten())
    >>> with capture_output(model, "0") as captured:
    ...     _ = model(Tensor([[-1, 2]]))
    >>> captured
    [tensor([[0., 2.]])]
    """
    captured: list[Tensor] = []

    def capture(module: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor):
            captured.append(transform(output))

    with forward_hooks(outputs=[(model.get_submodule(path), capture)]):
        yield captured


def first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The first argument of a call, whether it was passed by position or by name.

    >>> first_argument((1, 2), {}), first_argument((), {"input": 3})
    (1, 3)
    """
    return args[0] if args else next(iter(kwargs.values()))


def averaged(x: Tensor, side: int) -> Tensor:
    """Average over positions and flatten: [n, ...] -> [n, d], in new memory.

    Maps [n, k, h, w] are averaged to at most `side` x `side` positions, tokens [n, t, d] over all
    t. Vectors [n, d] are copied. The result is new memory because a later layer may change x in
    place.
    """
    if x.dim() == 4:
        x = F.adaptive_avg_pool2d(x, (min(side, x.shape[2]), min(side, x.shape[3])))
    elif x.dim() == 3:
        x = x.mean(dim=1)
    return x.flatten(1).clone()


@contextmanager
def gradients_for(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Only `parameters` require gradients, so that autograd never enters the frozen layers before
    them. At the end all `requires_grad` flags are restored, also after an error.

    >>> model = nn.Linear(2, 1)
    >>> with gradients_for(model, [model.bias]):
    ...     print(model.weight.requires_grad, model.bias.requires_grad)
    False True
    >>> model.weight.requires_grad
    True
    """
    chosen = {id(parameter) for parameter in parameters}
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


def print_to_stderr(module: nn.Module) -> None:
    """Send what the user's forward prints to stderr, since stdout is for results."""
    redirections: list[redirect_stdout[Any]] = []

    def enter(*_: Any) -> None:
        redirections.append(redirect_stdout(sys.stderr))
        redirections[-1].__enter__()

    def leave(*_: Any) -> None:
        redirections.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)
