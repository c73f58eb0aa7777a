"""The diagonal Fisher information of a classifier in one pass over the images.

    F = sum over images n, sum over output vectors v[n] of (J_n^T v[n])^2,    J_n = dz_n / dtheta

with the output vectors of `estimators.py`, which all share one forward pass. `validated_plan.py`
decides which calls of layers `gradient_hooks.py` has to hook. The rules of `layer_table.py` give
each image's gradients there, and `accumulate.py` adds their squares. All of this works on kernels
that `models/kernel_cropping.py` has cropped to their used region. The results are sums over the
images, not means. The square of a batch's mean gradient is not the Fisher information.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from pbu_cli.errors import InvalidUsage, PbuError
from pbu_cli.fisher.accumulate import OutputVectors, Parameters, Totals, batch_adder, zero_totals
from pbu_cli.fisher.dispatch import FisherPlan
from pbu_cli.fisher.estimators import check_labels, empirical, exact, monte_carlo
from pbu_cli.fisher.validated_plan import (
    crops_and_plan,
    in_eval_mode,
    named_parameters,
    validated_plan,
    whole_kernels,
    with_used_regions,
)
from pbu_cli.models.kernels.kernel_cropping import NO_CROPS, Crops, cropped, cropped_parameters
from pbu_cli.runtime.device import keep_freed_memory
from pbu_cli.settings import Estimator

ESTIMATORS: Mapping[Estimator, OutputVectors] = {
    "empirical": empirical,
    "exact": exact,
    "mc": monte_carlo,
}


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

    batches: pairs (x [N, *image] on the model's device, labels [N]). Only `empirical` needs the
    labels to be true. `draws` and `seed` are for `mc`; an image's draws depend on its number alone,
    however the images are batched. Values have their parameter's shape, in fp32 or in the
    parameter's own dtype if that is wider.

    The model runs in eval mode and is left as it was: modes, flags, gradients, buffers. Layers
    below the first of `parameters` take no part in backward.

    Raises InvalidUsage for an unknown parameter or less than one draw, ImageError for a label that
    is not a class, PbuError if the model has no per-image gradients or a result is not finite.

    >>> model = nn.Linear(1, 2, bias=False)
    >>> _ = nn.init.zeros_(model.weight)  # p = (1/2, 1/2), so g = +-x/2
    >>> fisher_diagonal(model, [(torch.tensor([[2.0], [4.0]]), torch.tensor([0, 1]))])
    {'weight': tensor([[5.],
            [5.]])}
    """
    if estimator == "mc" and draws < 1:
        raise InvalidUsage(f"the number of draws has to be 1 or more, got {draws}")
    keep_freed_memory()
    total = _RunningTotal(
        model, named_parameters(model, parameters), estimator, draws=draws, seed=seed
    )
    with in_eval_mode(model):
        for images, labels in batches:
            if len(images) > 0:
                total.add(images, labels)
    return _finite(total.finish())


class _RunningTotal:
    """The totals so far, and for each image size the plan and the function that adds a batch."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Parameters,
        estimator: Estimator,
        *,
        draws: int,
        seed: int,
    ) -> None:
        self.model = model
        self.parameters = parameters
        self.estimator: Estimator = estimator
        self.draws = draws
        self.generator = torch.Generator().manual_seed(seed)
        self.passes: dict[torch.Size, tuple[FisherPlan, Callable[[Tensor, Tensor], None]]] = {}
        self.crops: Crops = NO_CROPS
        self.used_regions: dict[str, nn.Parameter] = {}
        self.totals: Totals = {}

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Add a batch, images [N, *image] and labels [N]. Needs `in_eval_mode`."""
        x = images.clone() if images.is_inference() else images
        size = x.shape[1:]
        if size not in self.passes:
            plan = self._plan(x)
            self.passes[size] = plan, self._adder(plan)
        plan, add = self.passes[size]
        targets = self._targets(x, labels, plan.classes)
        with cropped(self.model, self.crops, self.used_regions):
            add(x, targets)

    def _plan(self, x: Tensor) -> FisherPlan:
        """The plan for images like x. Only the first image size may have crops."""
        if not self.passes:
            self.crops, plan = crops_and_plan(self.model, self.parameters, x)
            self.used_regions = cropped_parameters(self.model, self.crops)
            return plan
        if self.crops:  # they were made for another image size
            self.totals = whole_kernels(self.totals, self.crops, self.parameters)
            self.crops, self.used_regions = NO_CROPS, {}
            self.passes.clear()
        return validated_plan(self.model, self.parameters, x, self.crops)

    def _adder(self, plan: FisherPlan) -> Callable[[Tensor, Tensor], None]:
        active = with_used_regions(self.parameters, self.used_regions)
        if not self.totals:  # not before the plan, whose validation holds totals of its own
            self.totals = zero_totals(active)
        count = {"empirical": 1, "exact": plan.classes - 1, "mc": self.draws}[self.estimator]
        vectors = ESTIMATORS[self.estimator]
        return batch_adder(self.model, active, plan, vectors, count, self.totals)

    def _targets(self, x: Tensor, labels: Tensor, classes: int) -> Tensor:
        """The labels, or for `mc` a random number for each draw of each image."""
        targets = labels
        if self.estimator == "empirical":
            check_labels(labels, classes)
        if self.estimator == "mc":
            shape = len(x), self.draws
            targets = torch.rand(shape, dtype=torch.float64, generator=self.generator)
        if targets.dtype != torch.float64 or x.is_cuda:  # MPS has no float64
            targets = targets.to(x.device)
        return targets

    def finish(self) -> Totals:
        """The totals of the whole kernels."""
        totals = self.totals or zero_totals(self.parameters)
        return whole_kernels(totals, self.crops, self.parameters)


def _finite(totals: Totals) -> Totals:
    """The totals, contiguous. Raises PbuError if one of them is not finite."""
    broken = [name for name, total in totals.items() if not total.isfinite().all()]
    if broken:
        raise PbuError(
            f"the Fisher information of {len(broken)} parameters is not finite, {broken[0]!r} the "
            "first of them; look for NaN and huge values in the weights and in the images"
        )
    return {name: _in_order(total) for name, total in totals.items()}


def _in_order(total: Tensor) -> Tensor:
    """`total` made contiguous in its own memory, so that there is never a second set of totals.

    >>> t = torch.arange(4.0).view(1, 2, 1, 2).to(memory_format=torch.channels_last)
    >>> _in_order(t).flatten(), t.is_contiguous()
    (tensor([0., 1., 2., 3.]), False)
    """
    if total.is_contiguous():
        return total
    ordered = total.contiguous()
    return total.as_strided(ordered.shape, ordered.stride()).copy_(ordered)
