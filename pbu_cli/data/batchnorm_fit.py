"""How well images fit the running statistics of a network's BatchNorm layers.

The statistics are those of the training images as the training prepared them. Another size,
another normalisation or another stem moves the inputs of the layers away from them, also where
the images are of one class alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pbu_cli.models.hooks import first_argument, forward_hooks
from pbu_cli.models.inference import predict

Layers = Mapping[str, _BatchNorm]


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers that have running statistics, by name, in the order of definition."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


@contextmanager
def capture_moments(layers: Layers) -> Iterator[dict[str, list[Tensor]]]:
    """For every layer a list that receives, on every call, the moments of its input x.

    float64 [1, 3, channels]: the number of values in a channel, and the sums of x and of x^2.
    """
    captured: dict[str, list[Tensor]] = {name: [] for name in layers}

    def capture(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = first_argument(args, kwargs).transpose(0, 1).flatten(1)  # channels first
        # Sums in float32 are too coarse to be subtracted later. MPS has no float64.
        mean, var = (t.cpu().double() for t in (x.mean(1), x.var(1, correction=0)))
        moments = torch.stack([torch.ones_like(mean), mean, var + mean**2])
        captured[names[module]].append(x.shape[1] * moments[None])

    names: dict[nn.Module, str] = {layer: name for name, layer in layers.items()}
    with forward_hooks(inputs=[(layer, capture) for layer in layers.values()]):
        yield captured


def mismatch(layer: _BatchNorm, moments: Tensor) -> float:
    """KL divergence of the inputs from the layer's running statistics, in nats a channel.

    Both are taken as Gaussians, with mean m and variance v of the inputs, and M and V of the
    layer: 1/2 ((v + (m - M)^2) / V - 1 - log(v / V)), averaged over channels. moments: from
    `capture_moments`, [calls, 3, channels].
    """
    running = (layer.running_mean, layer.running_var)
    expected, scale = (t.cpu().double() for t in running if t is not None)
    scale = scale.clamp_min(1e-12)
    sums = torch.zeros(())
    for of_call in moments:
        sums = sums + of_call
    mean, square = sums[1:] / sums[0]
    var = (square - mean**2).clamp_min(1e-12)
    ratio = (var + (mean - expected) ** 2) / scale
    return 0.5 * float((ratio - 1 - (var / scale).log()).mean())


def median_mismatch(model: nn.Module, batches: Iterable[Tensor]) -> float | None:
    """The median of the `mismatch` of all BatchNorm layers that `batches` reach, in nats a channel.

    None for a network that has none. The median is small for every single class of the training
    data as long as size, normalisation and architecture are those of the training, although the
    last layers see a class of their own each time.
    """
    layers = batch_norms(model)
    if not layers:
        return None
    with capture_moments(layers) as captured:
        found = predict(model, batches, captured=captured).captured
    values: Sequence[float] = [mismatch(layers[name], moments) for name, moments in found.items()]
    return statistics.median(values) if values else None
