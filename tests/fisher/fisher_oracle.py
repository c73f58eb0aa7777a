"""The obviously right Fisher diagonal: a batch-of-one autograd loop in the model's own dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def fisher_loop(model: nn.Module, x: Tensor, labels: Tensor, estimator: str) -> dict[str, Tensor]:
    """empirical: sum_n g(s_n)^2; exact: sum_n sum_y p(y|x_n) g(y)^2, g(y) = d log p(y|x_n)."""
    model.eval().requires_grad_(True)
    names, parameters = zip(*model.named_parameters(), strict=True)
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for image, label in zip(x, labels, strict=True):
        log_p = model(image[None]).log_softmax(1)[0]
        every = [(int(label), 1.0)] if estimator == "empirical" else enumerate(log_p.exp().tolist())
        for y, weight in every:
            gradients = torch.autograd.grad(
                log_p[y], parameters, retain_graph=True, allow_unused=True
            )
            for name, g in zip(names, gradients, strict=True):
                if g is not None:
                    total[name] += weight * g.square()
    return {name: value.detach() for name, value in total.items()}


def errors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, float, str]:
    """Relative error of the whole vector, of the worst tensor, and that one's name."""
    assert found.keys() == wanted.keys()
    each = {}
    for name, want in wanted.items():
        assert found[name].shape == want.shape
        difference, size = float((found[name] - want).norm()), float(want.norm())
        each[name] = difference / size if size > 0 else difference
    gap = sum(float((found[name] - want).square().sum()) for name, want in wanted.items()) ** 0.5
    size = sum(float(want.square().sum()) for want in wanted.values()) ** 0.5
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
