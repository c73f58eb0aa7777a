"""Find out, by trying, how the gradients of single images can be had for each parameter.

Nothing is concluded from a module's class or a tensor's layout. The model runs on two noise
images, together and each alone, and a call of a layer becomes a site only if image by image the
output, and the gradient of the output, are those of the image alone. Detaching the parameters at
all sites must then leave no way from the logits back to a parameter: what is left is a use that
nobody saw, and the parameter is left to the slow way. `fisher.py` tries the finished plan once
more, as a whole, against a loop over the two images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pbu_cli.errors import PbuError
from pbu_cli.fisher.gradient_hooks import Calls, HookedCall, Operands, forward_with_hooks, sent_back
from pbu_cli.fisher.layer_table import LAYERS, Layer

# The ways other than a layer's rule, which goes by the layer's name.
VIA_AUTOGRAD = "pulled back"  # each image's gradient of all that is made of it, then autograd
PER_IMAGE = "image by image"  # a backward pass for each image: always right, always slow
UNUSED = "unused"  # no way from the logits to it: zero


@dataclass(frozen=True)
class FisherPlan:
    """For one model and one image shape: where to tap, and the way of every parameter."""

    calls: int
    sites: Mapping[int, HookedCall]
    ways: Mapping[str, str]
    # What meets the images at the sites: parameters, "" for what is made of some.
    met: tuple[str, ...]
    classes: int

    def by(self, way: str) -> list[str]:
        """The parameters that go this way."""
        return [name for name, chosen in self.ways.items() if chosen == way]


@dataclass(frozen=True)
class _Seen:
    """One call of a layer in a plain forward pass."""

    layer: Layer
    learned: Mapping[str, torch.Size]  # arguments that depend on a wanted parameter
    output: torch.Size
    image_dims: int


@dataclass(frozen=True)
class _Trial:
    """One forward_with_hooks forward and backward pass; the mappings go by the number of the call."""

    logits: Tensor
    calls: int
    outputs: Mapping[int, Tensor]
    gradients: Mapping[int, Tensor]
    operands: Mapping[int, Operands]
    left: frozenset[str]  # parameters that autograd still reaches

    def gradient(self, number: int) -> Tensor:
        """Of the site's output; zero where the logits do not depend on it."""
        return self.gradients.get(number, torch.zeros_like(self.outputs[number]))


def propose(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor, v: Tensor
) -> FisherPlan:
    """The plan for `parameters`, all of which require a gradient and no others do.

    x [2, *image] two different images, v [2, classes] what to send back from the logits.
    """
    sites = _candidates(_trace(model, x), _trace(model, x[:1]))
    both = _try(model, parameters, x, v, sites)
    each = [_try(model, parameters, x[n : n + 1], v[n : n + 1], sites) for n in range(2)]
    if not both.logits.isfinite().all():
        raise PbuError(
            "the model's logits for images of noise are not finite, so there are no gradients; "
            "look for NaN and huge values in the weights"
        )
    if not _alike(both.logits, torch.cat([one.logits for one in each])):
        raise PbuError(
            "the model's logits for an image change with the other images of the batch, or from "
            "call to call, so the image has no gradient of its own; give the model layers that "
            "use stored statistics (BatchNorm with track_running_stats) and no randomness in eval"
        )
    settled = {number: _settle(site, number, both, each) for number, site in sites.items()}
    uses: dict[str, list[str]] = {name: [] for name in parameters}
    names = {id(parameter): name for name, parameter in parameters.items()}
    met = []
    for number, site in settled.items():
        for operand in both.operands[number].values():
            name = names.get(id(operand), "")
            rule = PER_IMAGE if site is None else site.layer.name if name else ""
            for part in [name] if name else _below(operand, parameters):
                uses[part].append(rule)
            if site is not None:
                met.append(name)
    return FisherPlan(
        calls=both.calls,
        sites={number: site for number, site in settled.items() if site is not None},
        ways={name: _way(rules, name in both.left) for name, rules in uses.items()},
        met=tuple(met),
        classes=v.shape[1],
    )


def _way(rules: list[str], left: bool) -> str:
    """From the rules at a parameter's sites ("" where it is a part of what is used) to its way.

    >>> _way(["conv"], False), _way(["conv", "conv"], False), _way([""], False), _way([], True)
    ('conv', 'pulled back', 'pulled back', 'image by image')
    """
    if left or PER_IMAGE in rules:
        return PER_IMAGE
    if not rules:
        return UNUSED
    return rules[0] if len(rules) == 1 and rules[0] else VIA_AUTOGRAD


def _trace(model: nn.Module, x: Tensor) -> list[_Seen]:
    """Every call of a layer in one forward pass."""
    seen = []

    def visit(
        number: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        z, layer = func(*args, **kwargs), LAYERS[func]
        call = layer.bind(args, kwargs) or {}
        learned = {
            slot: operand.shape
            for slot in layer.rules
            if isinstance(operand := call.get(slot), Tensor) and operand.requires_grad
        }
        seen.append(_Seen(layer, learned, z.shape, layer.image_dims(call, z.ndim) if call else 0))
        return z

    with Calls(visit):
        model(x)
    return seen


def _candidates(both: list[_Seen], alone: list[_Seen]) -> dict[int, HookedCall]:
    """Calls whose output doubles with the batch while something learned keeps its size."""
    if [seen.layer for seen in both] != [seen.layer for seen in alone]:
        return {}
    sites = {}
    for number, (two, one) in enumerate(zip(both, alone, strict=True)):
        slots = tuple(slot for slot in one.learned if one.learned[slot] == two.learned.get(slot))
        for dim in range(one.image_dims):
            doubled = (*one.output[:dim], 2 * one.output[dim], *one.output[dim + 1 :])
            if slots and two.output == doubled:
                sites[number] = HookedCall(one.layer, slots, one.output, dim)
    return sites


def _try(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    x: Tensor,
    v: Tensor,
    sites: Mapping[int, HookedCall],
) -> _Trial:
    outputs: dict[int, Tensor] = {}
    gradients: dict[int, Tensor] = {}
    operands: dict[int, Operands] = {}

    def at_output(number: int, found: Operands, z: Tensor) -> None:
        outputs[number], operands[number] = z.detach().clone(), found

    logits, anchor, calls = forward_with_hooks(
        model, x, sites, lambda number, call, found, a, g: gradients.update({number: g}), at_output
    )
    left: tuple[Tensor | None, ...] = ()
    if logits.requires_grad:
        leaves = [*parameters.values(), anchor]
        left = sent_back(logits, v, leaves)
    return _Trial(
        logits.detach(),
        calls,
        outputs,
        gradients,
        operands,
        frozenset(n for n, g in zip(parameters, left, strict=False) if g is not None),
    )


def _settle(site: HookedCall, number: int, both: _Trial, each: list[_Trial]) -> HookedCall | None:
    """The site with the order of images in it, None if no order fits what the images do alone."""

    def error(tried: HookedCall) -> float:
        output = tried.images_first(both.outputs[number], 2)
        gradient = tried.images_first(both.gradient(number), 2)
        return max(
            _distance(output, torch.stack([one.outputs[number] for one in each])),
            _distance(gradient, torch.stack([one.gradient(number) for one in each])),
        )

    best = min((replace(site, inner=d) for d in _divisors(site.shape[site.dim])), key=error)
    same = all(
        _alike(both.operands[number][slot], one.operands[number][slot])
        for one in each
        for slot in site.slots
    )
    return best if same and error(best) <= tolerance(both.logits.dtype) else None


def _below(operand: Tensor, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """The parameters that `operand` is made of."""
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
    """1, ..., m.

    >>> list(_divisors(6))
    [1, 2, 3, 6]
    """
    return (d for d in range(1, m + 1) if m % d == 0)


def _distance(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|."""
    difference, size = (found - wanted).detach().norm(), wanted.detach().norm()
    return float(difference / size) if size > 0 else float(difference)


def _alike(found: Tensor, wanted: Tensor) -> bool:
    return _distance(found, wanted) <= tolerance(wanted.dtype)


def tolerance(dtype: torch.dtype) -> float:
    """What rounding may do to a pass through a deep net, and a mistaken layout never stays below.

    A single unit of a ReLU that falls on the other side of zero moves fp32 by 1e-3.
    """
    return {torch.float64: 1e-6, torch.float32: 1e-2}.get(dtype, 1e-1)
