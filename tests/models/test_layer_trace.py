"""At how many positions the layers of a network compute, against counting by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pbu_cli.models.layer_trace import SHRUNK, traced


def positions(model: nn.Module, x: Tensor) -> list[float | None]:
    with torch.no_grad(), traced(model) as trace:
        model(x)
    assert not any(module._forward_hooks for module in model.modules())
    return [call.positions for call in trace.calls]


def test_pixels_are_counted_and_a_kernel_larger_than_its_map_is_not_pooling() -> None:
    body = [
        nn.Conv2d(1, 4, 3, 2, 1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 4),
        nn.Conv2d(4, 4, 3, 1, 1),
    ]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(4, 3)).eval()
    assert positions(model, torch.zeros(2, 1, 8, 8)) == [16, 16, 1, SHRUNK, 1]


def test_tokens_are_counted_by_norms_and_linear_layers_follow_them() -> None:
    model = nn.Sequential(
        nn.LayerNorm(6), nn.Linear(6, 18), nn.Unflatten(2, (6, 3)), nn.LayerNorm(3)
    )
    assert positions(model, torch.zeros(2, 5, 6)) == [5, 5, None]


def test_a_convolution_over_the_channels_is_not_counted() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 1, 3)
    )
    assert positions(model, torch.zeros(2, 3, 1, 1)) == [1, None]


def test_the_first_call_of_a_module_is_its_time() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.ReLU(), nn.Sequential(layer))
    with traced(model) as trace:
        model(torch.zeros(2, 2))
    assert trace.entered == {"": 1, "0": 2, "1": 3, "2": 4}
    assert [(call.path, call.time) for call in trace.calls] == [("0", 2), ("0", 5)]
