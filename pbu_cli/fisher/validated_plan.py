"""Plan the Fisher pass of a model and validate the plan against a loop over two images."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import inf, isfinite, sqrt

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from pbu_cli.errors import InvalidUsage, PbuError
from pbu_cli.fisher.accumulate import (
    Parameters,
    Totals,
    add_alone,
    add_at_once,
    require,
    zeros,
)
from pbu_cli.fisher.dispatch import PER_IMAGE, FisherPlan, propose, tolerance
from pbu_cli.fisher.gradient_hooks import checked_logits
from pbu_cli.models.kernel_cropping import NO_CROPS, Crops, cropped, cropped_parameters, find_crops
from pbu_cli.runtime.device import compute_in_float32


def instead(wanted: Parameters, parts: Parameters) -> Parameters:
    """The parts in the places of their kernels."""
    return {name: parts.get(name, parameter) for name, parameter in wanted.items()}


def whole(totals: Totals, crops: Crops, wanted: Parameters) -> Totals:
    """`totals`, with those of crops made those of their kernels: no image's gradient reaches a dead
    tap. In place, so that there is never another set of them."""
    for name in totals.keys() & crops.keys():
        totals[name] = crops[name].whole(totals[name], wanted[name])
    return totals


def plan(model: nn.Module, x: Tensor, parameters: Collection[str] | None = None) -> dict[str, str]:
    """How each parameter gets its share: by a layer's rule, or one of the ways of `plan.py`.

    >>> plan(nn.Linear(2, 3), torch.zeros(1, 2))
    {'weight': 'linear', 'bias': 'linear'}
    """
    with at_rest(model):
        return dict(validated(model, named_parameters(model, parameters), x)[1].ways)


def validated(model: nn.Module, wanted: Parameters, x: Tensor) -> tuple[Crops, FisherPlan]:
    """Crops for images like x and a plan on them, or no crops where that plan says of a parameter
    that it has to go image by image: it may be used in a way that a crop spoils."""
    crops = find_crops(model, x[:2])
    if crops:
        found = _plan(model, wanted, x, crops)
        if PER_IMAGE not in found.ways.values():
            return crops, found
    return NO_CROPS, _plan(model, wanted, x, NO_CROPS)


def _plan(model: nn.Module, wanted: Parameters, x: Tensor, crops: Crops) -> FisherPlan:
    """A plan for images like x, found on two images of noise and then tried on them as a whole.

    Where it does not give what a loop over the two gives, with the kernels whole, the parameter is
    left to the loop.
    """
    generator = torch.Generator().manual_seed(0)
    mean, spread = float(x.mean()), float(x.std(correction=0))
    images = torch.randn(2, *x.shape[1:], generator=generator).to(x)
    if isfinite(mean) and 0 < spread < inf:
        images = images * spread + mean
    classes = checked_logits(model(images), 2).shape[1]
    v = torch.randn(2, classes, generator=generator).to(x)

    def columns(logits: Tensor, given: Tensor) -> list[Tensor]:
        return [given]

    if not wanted:
        return FisherPlan(0, {}, {}, (), classes)
    parts = cropped_parameters(model, crops)
    live = instead(wanted, parts)
    with cropped(model, crops, parts):
        require(live, live)
        try:
            proposal = propose(model, live, images, v)
        except CheckpointError:  # torch runs checkpointed layers again in backward, without taps
            return FisherPlan(0, {}, dict.fromkeys(wanted, PER_IMAGE), (), classes)
        totals = zeros(live)
        add_at_once(model, live, proposal, images, v, columns, totals)
    totals = whole(totals, crops, wanted)
    sizes = {name: float(total.norm()) for name, total in totals.items()}
    # Rounding makes noise of a gradient that is zero, as that of a bias before a softmax over keys;
    # so what is small beside the whole, by the square of the precision, counts as zero.
    mean = sum(float(t.sum()) for t in totals.values()) / sum(t.numel() for t in totals.values())
    zero = mean * (10 * torch.finfo(x.dtype).eps) ** 2
    for total in totals.values():
        total.neg_()  # so that what the loop adds leaves the difference: no second set of totals
    for some in _in_quarters(wanted):  # a loop holds the gradients of all that it is asked for
        add_alone(model, some, images, v, columns, totals)
    agree = {
        name: float(total.norm()) <= tolerance(x.dtype) * sizes[name] + zero * sqrt(total.numel())
        for name, total in totals.items()
    }
    wrong = [name for name in wanted if not agree[name]]
    return replace(proposal, ways={**proposal.ways, **dict.fromkeys(wrong, PER_IMAGE)})


def _in_quarters(parameters: Parameters) -> list[Parameters]:
    """The parameters by groups of at most a quarter of their numbers, larger ones by themselves.

    >>> [*map(list, _in_quarters({name: nn.Parameter(torch.zeros(3)) for name in "abcdefgh"}))]
    [['a', 'b'], ['c', 'd'], ['e', 'f'], ['g', 'h']]
    """
    most = sum(parameter.numel() for parameter in parameters.values()) // 4
    groups: list[dict[str, nn.Parameter]] = []
    held = most
    for name, parameter in parameters.items():
        if held + parameter.numel() > most:
            groups.append({})
            held = 0
        groups[-1][name] = parameter
        held += parameter.numel()
    return [*groups]


# The model's state


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Eval mode, no parameter asks for a gradient; all flags as they were afterwards.

    Without torch's fused attention for inference, inside which no layer can be seen, and without
    TF32.
    """
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    convolves, multiplies = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.mha.set_fastpath_enabled(False)
    compute_in_float32()
    try:
        model.eval()
        for parameter in flags:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
        torch.backends.cudnn.allow_tf32 = convolves
        torch.backends.cuda.matmul.allow_tf32 = multiplies
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode


def named_parameters(model: nn.Module, names: Collection[str] | None) -> dict[str, nn.Parameter]:
    """The wanted parameters in the model's order; a tied one goes by its first name."""
    known = dict(model.named_parameters())
    wanted = set(known if names is None else names)
    unknown = sorted(wanted - known.keys())
    if unknown:
        raise InvalidUsage(
            f"the model has no parameter {unknown[0]!r} (one of {len(unknown)} unknown names); "
            "names are those of named_parameters()"
        )
    integer = [name for name in known if name in wanted and not known[name].is_floating_point()]
    if integer:
        raise PbuError(
            f"parameter {integer[0]!r} is of type {known[integer[0]].dtype}, which has no real "
            "gradient; load the model in floating point, or leave the parameter out"
        )
    return {name: parameter for name, parameter in known.items() if name in wanted}
