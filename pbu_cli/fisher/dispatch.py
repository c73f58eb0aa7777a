"""Choose, by trying, the strategy that gives each parameter its per-image gradients.

Nothing is concluded from a module's class or a tensor's layout. The model runs on two noise images,
together and each alone. A call of a layer is hooked only if, image by image, the output and the
gradient of the output are equal to those of the image alone. With the parameters detached at all
hooked calls, autograd must not reach a parameter from the logits any more. A parameter that is
still reached has a use that no hook covers, and gets the slow strategy. `validated_plan.py` then
checks the finished plan as a whole against a loop over the two images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pbu_cli.errors import PbuError
from pbu_cli.fisher.gradient_hooks import Operands, backpropagate, forward_with_hooks
from pbu_cli.fisher.layer_calls import HookedCall, hookable_calls, trace

# The strategies other than a layer's rule, which is named after the layer.
VIA_AUTOGRAD = "via autograd"  # a rule up to the tensor made of parameters, autograd from there on
PER_IMAGE = "per image"  # one backward pass for each image: always right, always slow
UNUSED = "unused"  # the logits do not depend on the parameter: zero


@dataclass(frozen=True)
class FisherPlan:
    """For one model and one image shape: which calls to hook, and each parameter's strategy.

    layer_calls: how many calls of layers a forward pass makes. hooked_calls: by number of the call.
    visited: the names of the parameters at the hooked calls in order, "" for a tensor that is made
    of parameters.
    """

    layer_calls: int
    hooked_calls: Mapping[int, HookedCall]
    strategies: Mapping[str, str]
    visited: tuple[str, ...]
    classes: int

    def names(self, strategy: str) -> list[str]:
        """The names of the parameters that have this strategy."""
        return [name for name, chosen in self.strategies.items() if chosen == strategy]


@dataclass(frozen=True)
class _Trial:
    """One forward and backward pass with hooks. The mappings are keyed by the number of the call.

    reached: the names of the parameters that autograd still reaches.
    """

    logits: Tensor
    layer_calls: int
    outputs: Mapping[int, Tensor]
    gradients: Mapping[int, Tensor]
    operands: Mapping[int, Operands]
    reached: frozenset[str]

    def gradient(self, number: int) -> Tensor:
        """The gradient of the call's output, zero where the logits do not depend on it."""
        return self.gradients.get(number, torch.zeros_like(self.outputs[number]))


def propose(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor, v: Tensor
) -> FisherPlan:
    """The plan for `parameters`, all of which require a gradient while no others do.

    x [2, *image]: two different images. v [2, classes]: what to backpropagate from the logits.
    Raises PbuError if the logits are not finite, or if an image's logits depend on other images.
    """
    hookable = hookable_calls(trace(model, x), trace(model, x[:1]))
    both = _try(model, parameters, x, v, hookable)
    single = [_try(model, parameters, x[n : n + 1], v[n : n + 1], hookable) for n in range(2)]
    _check_logits(both.logits, torch.cat([one.logits for one in single]))
    verified = {number: _verify(call, number, both, single) for number, call in hookable.items()}
    uses: dict[str, list[str]] = {name: [] for name in parameters}
    names = {id(parameter): name for name, parameter in parameters.items()}
    visited = []
    for number, call in verified.items():
        for operand in both.operands[number].values():
            name = names.get(id(operand), "")
            rule = PER_IMAGE if call is None else call.layer.name if name else ""
            for part in [name] if name else _parameters_of(operand, parameters):
                uses[part].append(rule)
            if call is not None:
                visited.append(name)
    return FisherPlan(
        layer_calls=both.layer_calls,
        hooked_calls={number: call for number, call in verified.items() if call is not None},
        strategies={name: _strategy(rules, name in both.reached) for name, rules in uses.items()},
        visited=tuple(visited),
        classes=v.shape[1],
    )


def _check_logits(together: Tensor, alone: Tensor) -> None:
    if not together.isfinite().all():
        raise PbuError(
            "the model's logits for images of noise are not finite, so there are no gradients; "
            "look for NaN and huge values in the weights"
        )
    if not _close(together, alone):
        raise PbuError(
            "the model's logits for an image change with the other images of the batch, or from "
            "call to call, so the image has no gradient of its own; give the model layers that "
            "use stored statistics (BatchNorm with track_running_stats) and no randomness in eval"
        )


def _strategy(rules: list[str], reached: bool) -> str:
    """The strategy of a parameter, from the rules of the calls that use it.

    The rule "" stands for a call that uses a tensor made of the parameter.

    >>> _strategy(["conv"], False), _strategy(["conv", "conv"], False), _strategy([""], False)
    ('conv', 'via autograd', 'via autograd')
    >>> _strategy([], True), _strategy([], False)
    ('per image', 'unused')
    """
    if reached or PER_IMAGE in rules:
        return PER_IMAGE
    if not rules:
        return UNUSED
    return rules[0] if len(rules) == 1 and rules[0] else VIA_AUTOGRAD


def _try(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    x: Tensor,
    v: Tensor,
    calls: Mapping[int, HookedCall],
) -> _Trial:
    outputs: dict[int, Tensor] = {}
    gradients: dict[int, Tensor] = {}
    operands: dict[int, Operands] = {}

    def on_output(number: int, found: Operands, z: Tensor) -> None:
        outputs[number], operands[number] = z.detach().clone(), found

    logits, leaf, count = forward_with_hooks(
        model,
        x,
        calls,
        lambda number, arguments, found, a, g: gradients.update({number: g}),
        on_output,
    )
    reached: tuple[Tensor | None, ...] = ()
    if logits.requires_grad:
        reached = backpropagate(logits, v, [*parameters.values(), leaf])
    return _Trial(
        logits.detach(),
        count,
        outputs,
        gradients,
        operands,
        frozenset(n for n, g in zip(parameters, reached, strict=False) if g is not None),
    )


def _verify(call: HookedCall, number: int, both: _Trial, single: list[_Trial]) -> HookedCall | None:
    """The call with the order of the images in its output.

    None if no order gives the outputs and gradients of the images alone. Where the exact gradient
    is zero, as for the queries of an attention with one key, rounding leaves noise, which differs.
    Differences count as zero below the largest gradient of all calls times the precision.
    """
    largest = max((float(g.norm()) for g in both.gradients.values()), default=0.0)
    noise = 10 * torch.finfo(both.logits.dtype).eps * largest

    def error(ordered: HookedCall) -> float:
        output = ordered.images_first(both.outputs[number], 2)
        gradient = ordered.images_first(both.gradient(number), 2)
        return max(
            _distance(output, torch.stack([one.outputs[number] for one in single])),
            _distance(gradient, torch.stack([one.gradient(number) for one in single]), noise),
        )

    best = min((replace(call, inner=d) for d in _divisors(call.shape[call.dim])), key=error)
    same_operands = all(
        _close(both.operands[number][name], one.operands[number][name])
        for one in single
        for name in call.operands
    )
    return best if same_operands and error(best) <= tolerance(both.logits.dtype) else None


def _parameters_of(operand: Tensor, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """The names of the parameters that `operand` is computed from."""
    if not operand.requires_grad:
        return []
    found = torch.autograd.grad(
        operand,
        list(parameters.values()),
        torch.ones_like(operand),
        retain_graph=True,
        allow_unused=True,
    )
    return [name for name, g in zip(parameters, found, strict=True) if g is not None]


def _divisors(m: int) -> Iterator[int]:
    """The divisors of m in order.

    >>> list(_divisors(6))
    [1, 2, 3, 6]
    """
    return (d for d in range(1, m + 1) if m % d == 0)


def _distance(found: Tensor, expected: Tensor, noise: float = 0.0) -> float:
    """|found - expected| / |expected|, or the numerator alone where |expected| is zero.

    noise: how much of the numerator counts as zero.

    >>> _distance(torch.tensor([2.5]), torch.tensor([2.0]))
    0.25
    >>> _distance(torch.tensor([2.5]), torch.tensor([2.0]), noise=1.0)
    0.0
    """
    difference, size = (found - expected).detach().norm(), expected.detach().norm()
    beyond = (difference - noise).clamp(min=0)
    return float(beyond / size) if size > 0 else float(beyond)


def _close(found: Tensor, expected: Tensor) -> bool:
    return _distance(found, expected) <= tolerance(expected.dtype)


def tolerance(dtype: torch.dtype) -> float:
    """The largest relative error that rounding causes in a pass through a deep network.

    A wrong layout of the images gives a larger error. A single ReLU unit that falls on the other
    side of zero moves fp32 by 1e-3.
    """
    return {torch.float64: 1e-6, torch.float32: 1e-2}.get(dtype, 1e-1)
