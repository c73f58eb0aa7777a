"""The obviously right results: batch-of-one autograd loops, and the comparison with them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from pbu_cli.fisher.diagonal import fisher_diagonal
from pbu_cli.fisher.validated_plan import crops_and_plan, in_eval_mode, named_parameters

LABELS = torch.tensor([0, 3, 1])
NEGLIGIBLE = 1e-10  # of the mean of all tensors: what rounding leaves of a gradient of zero


def fisher_loop(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    estimator: str,
    only: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """empirical: sum_n g(s_n)^2; exact: sum_n sum_y p(y|x_n) g(y)^2, g(y) = d log p(y|x_n).

    only: the names of the parameters to compute it for (None: all). Each image is in a batch with a
    copy of itself, because torch's batch norm has wrong gradients for some batches of one
    (`layer_calls.plain_call`).
    """
    model.eval().requires_grad_(True)
    known = dict(model.named_parameters())
    names = [name for name in known if only is None or name in only]
    parameters = [known[name] for name in names]
    total = {name: torch.zeros_like(known[name]) for name in names}
    for image, label in zip(x, labels, strict=True):
        log_p = model(torch.stack([image, image])).log_softmax(1)[0]
        every = [(int(label), 1.0)] if estimator == "empirical" else enumerate(log_p.exp().tolist())
        for y, weight in every:
            gradients = torch.autograd.grad(
                log_p[y], parameters, retain_graph=True, allow_unused=True
            )
            for name, g in zip(names, gradients, strict=True):
                if g is not None:
                    total[name] += weight * g.square()
    return {name: value.detach() for name, value in total.items()}


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, float, str]:
    """Relative error of the whole vector, of the worst tensor, and the name of that tensor."""
    assert found.keys() == expected.keys()
    each = {}
    for name, target in expected.items():
        assert found[name].shape == target.shape
        difference, size = float((found[name] - target).norm()), float(target.norm())
        each[name] = difference / size if size > 0 else difference
    gap = (
        sum(float((found[name] - target).square().sum()) for name, target in expected.items())
        ** 0.5
    )
    size = sum(float(target.square().sum()) for target in expected.values()) ** 0.5
    worst = max(each, key=lambda name: each[name])
    return gap / size, each[worst], worst


@torch.no_grad()
def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64, nothing degenerate: no zero bias, no layer scale of 1e-6, no unit variance."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        drawn = torch.rand(like.shape, generator=generator, dtype=torch.float64)
        return low + (high - low) * drawn

    model.double()
    for name, p in model.named_parameters():
        if "layer_scale" in name:
            p.copy_(uniform(p, 0.2, 0.6))
        elif float(p.std(correction=0)) == 0:
            p.add_(uniform(p, -0.3, 0.3))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(uniform(buffer, -0.3, 0.3))
        elif name.endswith("running_var"):
            buffer.copy_(uniform(buffer, 0.5, 1.5))
    return model


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.double)


def per_image_gradients(
    forward: Callable[[Tensor, Tensor], Tensor], a: Tensor, g: Tensor, p: Tensor
) -> Tensor:
    """dL_n/dp for z = forward(a[n], p) and dL_n/dz = g[n], [n, *p.shape], by autograd."""
    rows: list[Tensor] = []
    for a_n, g_n in zip(a, g, strict=True):
        leaf = p.clone().requires_grad_()
        rows += torch.autograd.grad(forward(a_n, leaf), leaf, g_n)
    return torch.stack(rows)


def check(model: nn.Module, x: Tensor) -> None:
    """Compare the diagonal of all parameters with the loop, for both deterministic estimators."""
    for estimator in ("empirical", "exact"):
        expected = fisher_loop(model, x, LABELS, estimator)
        found = fisher_diagonal(
            model, [(x[:2], LABELS[:2]), (x[2:], LABELS[2:])], estimator=estimator
        )
        whole, worst, name = errors(found, expected)
        assert whole < 1e-10
        assert worst < 1e-8, name


def empirical(model: nn.Module, x: Tensor, **options: Any) -> dict[str, Tensor]:
    """The diagonal for one batch of images, by default with the estimator `empirical`."""
    return fisher_diagonal(model, [(x, LABELS[: len(x)])], **options)


def close(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float = 1e-10) -> bool:
    """Whether no tensor has a relative error above `bound`."""
    return errors(found, expected)[1] < bound


def largest_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative error of a tensor; a tensor of rounding errors counts as zero."""
    mean = sum(float(t.sum()) for t in expected.values()) / sum(t.numel() for t in found.values())

    def error(name: str) -> float:
        target = expected[name]
        floor = NEGLIGIBLE * mean * target.numel() ** 0.5
        return float((found[name].double() - target).norm()) / (float(target.norm()) + floor)

    return max(map(error, expected))


def strategies_of(model: nn.Module, x: Tensor) -> dict[str, str]:
    """The strategy that each parameter of the model gets for images like x."""
    with in_eval_mode(model):
        plan = crops_and_plan(model, named_parameters(model, None), x)[1]
    return dict(plan.strategies)
