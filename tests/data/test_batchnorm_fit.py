"""The mismatch of images with BatchNorm layers is a KL divergence, and its median over layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from pbu_cli.data.batchnorm_fit import batch_norms, capture_moments, median_mismatch, mismatch


def layer_with(mean: float, var: float) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(2).eval()
    layer.running_mean = torch.full((2,), mean)
    layer.running_var = torch.full((2,), var)
    return layer


def test_the_mismatch_is_the_divergence_of_the_inputs_from_the_statistics() -> None:
    layer, x = layer_with(0.3, 2.0), torch.randn(5, 2, 3, 4) + 1
    with capture_moments({"it": layer}) as captured:
        for part in x.split(2):
            layer(part)
    found = mismatch(layer, torch.cat(captured["it"]))
    flat = x.transpose(0, 1).flatten(1)
    given = Normal(flat.mean(1), flat.std(1, correction=0))
    expected = kl_divergence(given, Normal(0.3, 2.0**0.5)).mean().item()
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_median_is_over_the_layers_that_are_reached() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = layer_with(99.0, 1.0)
            self.near, self.far, self.other = (layer_with(m, 1.0) for m in (0.0, 3.0, 5.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in (self.near, self.far, self.other):
                layer(x)
            return x.flatten(1)

    net, x = Net().eval(), torch.randn(64, 2, 4, 4)
    assert list(batch_norms(net)) == ["unused", "near", "far", "other"]
    assert median_mismatch(net, x.split(10)) == pytest.approx(4.5, abs=0.3)  # 3^2 / 2
    assert not net.far._forward_pre_hooks


def test_a_network_without_running_statistics_has_no_mismatch() -> None:
    for layer in (nn.Flatten(), nn.BatchNorm2d(2, track_running_stats=False)):
        assert median_mismatch(nn.Sequential(layer, nn.Flatten()), [torch.ones(2, 2, 1, 1)]) is None
