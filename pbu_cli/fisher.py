"""Diagonal Fisher information of a classifier: one pass over the images, no loop over them.

    F = sum over images n, sum over columns v[n] of (J_n^T v[n])^2,    J_n = dz_n / dtheta

with the columns of `estimators.py`. All columns share one forward pass. `plan.py` says where
`taps.py` has to tap it, the rules of `layer_rules.py` give each image's gradients there, and
`squares.py` adds up their squares, all on kernels that `crops.py` has rid of what only meets
padding. Sums over the images, not means; the square of a batch's mean gradient is not the Fisher
information.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import inf, isfinite, sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from pbu_cli.crops import WHOLE, Crops, cropped, find_crops, live_parts
from pbu_cli.errors import InvalidUsage, PbuError
from pbu_cli.estimators import check_labels, drawn, empirical, exact
from pbu_cli.machine import compute_in_float32, keep_freed_memory
from pbu_cli.plan import ALONE, Plan, propose, tolerance
from pbu_cli.squares import (
    Columns,
    Parameters,
    Totals,
    add_alone,
    add_at_once,
    adder,
    require,
    zeros,
)
from pbu_cli.taps import checked_logits

Estimator = Literal["empirical", "exact", "mc"]
COLUMNS: Mapping[str, Columns] = {"empirical": empirical, "exact": exact, "mc": drawn}


def fisher_diagonal(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    estimator: Estimator = "empirical",
    draws: int = 1,
    seed: int = 0,
    parameters: Collection[str] | None = None,
) -> Totals:
    """Sum over all images of E[g^2] for each of `parameters`, by name (None: all of them).

    batches: (x [N, *image] on the model's device, labels [N]); only `empirical` needs the labels
    to be true. `draws` and `seed` are for `mc`: image n gets the same draws however it is batched.
    Values have their parameter's shape, in fp32 or in the parameter's own dtype if that is wider.

    The model runs in eval mode and is left as it was: modes, flags, gradients, buffers. Layers
    below the first of `parameters` take no part in backward.

    >>> model = nn.Linear(1, 2, bias=False)
    >>> _ = nn.init.zeros_(model.weight)  # p = (1/2, 1/2), so g = +-x/2
    >>> fisher_diagonal(model, [(torch.tensor([[2.0], [4.0]]), torch.tensor([0, 1]))])
    {'weight': tensor([[5.],
            [5.]])}
    """
    if estimator == "mc" and draws < 1:
        raise InvalidUsage(f"the number of draws has to be 1 or more, got {draws}")
    keep_freed_memory()
    wanted = _named(model, parameters)
    generator = torch.Generator().manual_seed(seed)
    passes: dict[torch.Size, tuple[Plan, Callable[[Tensor, Tensor], None]]] = {}
    crops: Crops = WHOLE
    parts: dict[str, nn.Parameter] = {}
    with _at_rest(model):
        totals: Totals = {}
        for images, labels in batches:
            if len(images) == 0:
                continue
            x = images.clone() if images.is_inference() else images
            size = x.shape[1:]
            if size not in passes:
                if not passes:
                    crops, found = _planned(model, wanted, x)
                    parts = live_parts(model, crops)
                else:
                    if crops:  # which were made for another size
                        totals, crops, parts = _whole(totals, crops, wanted), WHOLE, {}
                        passes.clear()
                    found = _plan(model, wanted, x, crops)
                live = _instead(wanted, parts)
                totals = totals or zeros(live)  # not beside the first trial's own
                count = {"empirical": 1, "exact": found.classes - 1, "mc": draws}[estimator]
                columns = COLUMNS[estimator]
                passes[size] = found, adder(model, live, found, columns, count, totals)
            found, add = passes[size]
            if estimator == "empirical":
                check_labels(labels, found.classes)
            given = labels
            if estimator == "mc":
                given = torch.rand(len(x), draws, dtype=torch.float64, generator=generator)
            if given.dtype != torch.float64 or x.is_cuda:  # MPS has none
                given = given.to(x.device)
            with cropped(model, crops, parts):
                add(x, given)
    totals = _whole(totals or zeros(wanted), crops, wanted)
    broken = [name for name, total in totals.items() if not total.isfinite().all()]
    if broken:
        raise PbuError(
            f"the Fisher information of {len(broken)} parameters is not finite, {broken[0]!r} the "
            "first of them; look for NaN and huge values in the weights and in the images"
        )
    return {name: _in_order(total) for name, total in totals.items()}


def _instead(wanted: Parameters, parts: Parameters) -> Parameters:
    """The parts in the places of their kernels."""
    return {name: parts.get(name, parameter) for name, parameter in wanted.items()}


def _whole(totals: Totals, crops: Crops, wanted: Parameters) -> Totals:
    """`totals`, with those of crops made those of their kernels: no image's gradient reaches a dead
    tap. In place, so that there is never another set of them."""
    for name in totals.keys() & crops.keys():
        totals[name] = crops[name].whole(totals[name], wanted[name])
    return totals


def _in_order(total: Tensor) -> Tensor:
    """`total` contiguous, in its own memory: there is never another set of them.

    >>> t = torch.arange(4.0).view(1, 2, 1, 2).to(memory_format=torch.channels_last)
    >>> _in_order(t).flatten(), t.is_contiguous()
    (tensor([0., 1., 2., 3.]), False)
    """
    if total.is_contiguous():
        return total
    ordered = total.contiguous()
    return total.as_strided(ordered.shape, ordered.stride()).copy_(ordered)


def plan(model: nn.Module, x: Tensor, parameters: Collection[str] | None = None) -> dict[str, str]:
    """How each parameter gets its share: by a layer's rule, or one of the ways of `plan.py`.

    >>> plan(nn.Linear(2, 3), torch.zeros(1, 2))
    {'weight': 'linear', 'bias': 'linear'}
    """
    with _at_rest(model):
        return dict(_planned(model, _named(model, parameters), x)[1].ways)


def _planned(model: nn.Module, wanted: Parameters, x: Tensor) -> tuple[Crops, Plan]:
    """Crops for images like x and a plan on them, or no crops where that plan says of a parameter
    that it has to go image by image: it may be used in a way that a crop spoils."""
    crops = find_crops(model, x[:2])
    if crops:
        found = _plan(model, wanted, x, crops)
        if ALONE not in found.ways.values():
            return crops, found
    return WHOLE, _plan(model, wanted, x, WHOLE)


def _plan(model: nn.Module, wanted: Parameters, x: Tensor, crops: Crops) -> Plan:
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
        return Plan(0, {}, {}, (), classes)
    parts = live_parts(model, crops)
    live = _instead(wanted, parts)
    with cropped(model, crops, parts):
        require(live, live)
        try:
            proposal = propose(model, live, images, v)
        except CheckpointError:  # torch runs checkpointed layers again in backward, without taps
            return Plan(0, {}, dict.fromkeys(wanted, ALONE), (), classes)
        totals = zeros(live)
        add_at_once(model, live, proposal, images, v, columns, totals)
    totals = _whole(totals, crops, wanted)
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
    return replace(proposal, ways={**proposal.ways, **dict.fromkeys(wrong, ALONE)})


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
def _at_rest(model: nn.Module) -> Iterator[None]:
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


def _named(model: nn.Module, names: Collection[str] | None) -> dict[str, nn.Parameter]:
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
