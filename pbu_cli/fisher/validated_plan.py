"""Plan the Fisher pass of a model and validate the plan against a loop over two images."""

from __future__ import annotations

import logging
from collections import Counter
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
    add_per_image,
    add_with_hooks,
    require_gradients,
    zero_totals,
)
from pbu_cli.fisher.dispatch import PER_IMAGE, FisherPlan, propose, tolerance
from pbu_cli.fisher.gradient_hooks import checked_logits
from pbu_cli.models.kernels.kernel_cropping import (
    NO_CROPS,
    Crops,
    cropped,
    cropped_parameters,
    find_crops,
)
from pbu_cli.runtime.device import compute_in_float32

logger = logging.getLogger(__name__)


def crops_and_plan(model: nn.Module, parameters: Parameters, x: Tensor) -> tuple[Crops, FisherPlan]:
    """Crops for images like x, and a plan that is validated with the cropped kernels.

    If that plan needs `PER_IMAGE` for a parameter, the model may use a kernel in a way that a crop
    breaks. The result is then no crops and a plan without them.
    """
    crops = find_crops(model, x[:2])
    if crops:
        plan = validated_plan(model, parameters, x, crops)
        if PER_IMAGE not in plan.strategies.values():
            return crops, plan
    return NO_CROPS, validated_plan(model, parameters, x, NO_CROPS)


def validated_plan(model: nn.Module, parameters: Parameters, x: Tensor, crops: Crops) -> FisherPlan:
    """A plan for images like x, made on two images of noise and then checked on them as a whole.

    The check compares it with a loop over the two images with whole kernels. A parameter for which
    the results differ gets the strategy `PER_IMAGE`. Needs `in_eval_mode`.
    """
    generator = torch.Generator().manual_seed(0)
    images = _noise_like(x, generator)
    classes = checked_logits(model(images), 2).shape[1]
    v = torch.randn(2, classes, generator=generator).to(x)
    if not parameters:
        return FisherPlan(0, {}, {}, (), classes)
    used_regions = cropped_parameters(model, crops)
    active = with_used_regions(parameters, used_regions)
    with cropped(model, crops, used_regions):
        require_gradients(active, active)
        try:
            plan = propose(model, active, images, v)
        except CheckpointError:  # torch runs checkpointed layers again in backward, without hooks
            return FisherPlan(0, {}, dict.fromkeys(parameters, PER_IMAGE), (), classes)
        totals = zero_totals(active)
        add_with_hooks(model, active, plan, images, v, _given_vectors, totals)
    totals = whole_kernels(totals, crops, parameters)
    wrong = _names_that_differ(model, parameters, images, v, totals)
    strategies = {**plan.strategies, **dict.fromkeys(wrong, PER_IMAGE)}
    logger.debug("parameters by strategy: %s", dict(Counter(strategies.values())))
    slow = [name for name, strategy in strategies.items() if strategy == PER_IMAGE]
    logger.debug("parameters whose gradients take a backward pass for each image: %s", slow)
    return replace(plan, strategies=strategies)


def _noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Two images of noise with the shape, mean and standard deviation of the images x."""
    mean, deviation = float(x.mean()), float(x.std(correction=0))
    images = torch.randn(2, *x.shape[1:], generator=generator).to(x)
    if isfinite(mean) and 0 < deviation < inf:
        images = images * deviation + mean
    return images


def _given_vectors(logits: Tensor, v: Tensor) -> list[Tensor]:
    """`OutputVectors` that are the targets themselves."""
    return [v]


def _names_that_differ(
    model: nn.Module, parameters: Parameters, images: Tensor, v: Tensor, totals: Totals
) -> list[str]:
    """The names of the parameters whose `totals` are not those of a loop over the images.

    The totals are overwritten: a second set of them would not fit beside a large model.
    """
    norms = {name: float(total.norm()) for name, total in totals.items()}
    # Where the exact gradient is zero, as for a bias before a softmax over keys, rounding leaves
    # noise. A value below the mean of all totals times the precision squared counts as zero.
    mean = sum(float(t.sum()) for t in totals.values()) / sum(t.numel() for t in totals.values())
    zero = mean * (10 * torch.finfo(images.dtype).eps) ** 2
    for total in totals.values():
        total.neg_()  # so that adding the loop's squares leaves the difference
    for group in _in_quarters(parameters):  # the loop holds the gradients of a whole group
        add_per_image(model, group, images, v, _given_vectors, totals)

    def agrees(name: str) -> bool:
        rounding = tolerance(images.dtype) * norms[name] + zero * sqrt(totals[name].numel())
        return float(totals[name].norm()) <= rounding

    return [name for name in parameters if not agrees(name)]


def _in_quarters(parameters: Parameters) -> list[Parameters]:
    """The parameters in groups of at most a quarter of all numbers. A larger one is a group alone.

    >>> [*map(list, _in_quarters({name: nn.Parameter(torch.zeros(3)) for name in "abcdefgh"}))]
    [['a', 'b'], ['c', 'd'], ['e', 'f'], ['g', 'h']]
    """
    limit = sum(parameter.numel() for parameter in parameters.values()) // 4
    groups: list[dict[str, nn.Parameter]] = []
    held = limit
    for name, parameter in parameters.items():
        if held + parameter.numel() > limit:
            groups.append({})
            held = 0
        groups[-1][name] = parameter
        held += parameter.numel()
    return [*groups]


# Cropped kernels


def with_used_regions(parameters: Parameters, used_regions: Parameters) -> Parameters:
    """`parameters`, with the used regions in the places of the cropped kernels."""
    return {name: used_regions.get(name, parameter) for name, parameter in parameters.items()}


def whole_kernels(totals: Totals, crops: Crops, parameters: Parameters) -> Totals:
    """`totals`, with those of used kernel regions extended to the whole kernels by zeros.

    No image's gradient reaches the rest of a kernel. The dict is changed in place, so that there is
    never a second set of totals.
    """
    for name in totals.keys() & crops.keys():
        totals[name] = crops[name].whole(totals[name], parameters[name])
    return totals


# The model's state


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, with no parameter requiring a gradient. All flags are restored afterwards.

    torch's fused attention for inference is off, since the layers inside it cannot be hooked, and
    so is TF32.
    """
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    fused_attention = torch.backends.mha.get_fastpath_enabled()
    conv_tf32, matmul_tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.mha.set_fastpath_enabled(False)
    compute_in_float32()
    try:
        model.eval()
        for parameter in flags:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused_attention)
        torch.backends.cudnn.allow_tf32 = conv_tf32
        torch.backends.cuda.matmul.allow_tf32 = matmul_tf32
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode


def named_parameters(model: nn.Module, names: Collection[str] | None) -> dict[str, nn.Parameter]:
    """The parameters with these names (None: all) in the model's order.

    A tied parameter has its first name. Raises InvalidUsage for an unknown name, and PbuError for a
    parameter that is not in floating point.
    """
    known = dict(model.named_parameters())
    chosen = set(known if names is None else names)
    unknown = sorted(chosen - known.keys())
    if unknown:
        raise InvalidUsage(
            f"the model has no parameter {unknown[0]!r} (one of {len(unknown)} unknown names); "
            "names are those of named_parameters()"
        )
    integer = [name for name in known if name in chosen and not known[name].is_floating_point()]
    if integer:
        raise PbuError(
            f"parameter {integer[0]!r} is of type {known[integer[0]].dtype}, which has no real "
            "gradient; load the model in floating point, or leave the parameter out"
        )
    return {name: parameter for name, parameter in known.items() if name in chosen}
