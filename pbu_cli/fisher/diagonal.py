"""Diagonal Fisher information of a classifier: one pass over the images, no loop over them.

    F = sum over images n, sum over columns v[n] of (J_n^T v[n])^2,    J_n = dz_n / dtheta

with the columns of `estimators.py`. All columns share one forward pass. `plan.py` says where
`taps.py` has to tap it, the rules of `layer_rules.py` give each image's gradients there, and
`squares.py` adds up their squares, all on kernels that `crops.py` has rid of what only meets
padding. Sums over the images, not means; the square of a batch's mean gradient is not the Fisher
information.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from pbu_cli.errors import InvalidUsage, PbuError
from pbu_cli.fisher.accumulate import (
    OutputVectors,
    Totals,
    adder,
    zeros,
)
from pbu_cli.fisher.dispatch import FisherPlan
from pbu_cli.fisher.estimators import check_labels, drawn, empirical, exact
from pbu_cli.fisher.validated_plan import (
    _plan,
    at_rest,
    instead,
    named_parameters,
    validated,
    whole,
)
from pbu_cli.models.kernel_cropping import NO_CROPS, Crops, cropped, cropped_parameters
from pbu_cli.runtime.device import keep_freed_memory

Estimator = Literal["empirical", "exact", "mc"]
ESTIMATORS: Mapping[str, OutputVectors] = {"empirical": empirical, "exact": exact, "mc": drawn}


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
    wanted = named_parameters(model, parameters)
    generator = torch.Generator().manual_seed(seed)
    passes: dict[torch.Size, tuple[FisherPlan, Callable[[Tensor, Tensor], None]]] = {}
    crops: Crops = NO_CROPS
    parts: dict[str, nn.Parameter] = {}
    with at_rest(model):
        totals: Totals = {}
        for images, labels in batches:
            if len(images) == 0:
                continue
            x = images.clone() if images.is_inference() else images
            size = x.shape[1:]
            if size not in passes:
                if not passes:
                    crops, found = validated(model, wanted, x)
                    parts = cropped_parameters(model, crops)
                else:
                    if crops:  # which were made for another size
                        totals, crops, parts = whole(totals, crops, wanted), NO_CROPS, {}
                        passes.clear()
                    found = _plan(model, wanted, x, crops)
                live = instead(wanted, parts)
                totals = totals or zeros(live)  # not beside the first trial's own
                count = {"empirical": 1, "exact": found.classes - 1, "mc": draws}[estimator]
                columns = ESTIMATORS[estimator]
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
    totals = whole(totals or zeros(wanted), crops, wanted)
    broken = [name for name, total in totals.items() if not total.isfinite().all()]
    if broken:
        raise PbuError(
            f"the Fisher information of {len(broken)} parameters is not finite, {broken[0]!r} the "
            "first of them; look for NaN and huge values in the weights and in the images"
        )
    return {name: _in_order(total) for name, total in totals.items()}


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
