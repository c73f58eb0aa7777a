"""The mean features of the training set, against the mean of features that it is told of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pbu_cli.activations import read_head
from pbu_cli.stages import head_module
from pbu_cli.trained_mean import FUNCTIONS, batch_norms, trained_mean
from pbu_cli.trunk import beyond, find_cut


class Ends(nn.Module):
    """f(BatchNorm(x)), averaged over places, under a linear head."""

    def __init__(self, function, affine: bool = True, beside: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(5, momentum=None, affine=affine)
        self.head = nn.Linear(5, 3)
        self.function, self.beside = function, beside

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        x = self.function(normed) + (x if self.beside else 0)
        return self.head(x.mean(dim=(2, 3)))


def trained(model: Ends) -> Tensor:
    """The images, [n, k, h, w], whose statistics the model then has."""
    torch.manual_seed(0)
    images = 3 * torch.randn(4000, 5, 2, 2) + torch.arange(5.0)[:, None, None]
    if model.norm.affine:
        with torch.no_grad():
            model.norm.weight.copy_(torch.linspace(-1, 2, 5))
            model.norm.bias.copy_(torch.linspace(1, -2, 5))
    model.train()(images)
    model.eval()
    return images


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("number", range(len(FUNCTIONS)))
def test_it_is_the_mean_of_what_was_trained_on(number, affine):
    model = Ends(FUNCTIONS[number], affine)
    images = trained(model)
    features, _ = read_head(model, "head", [images])
    found = trained_mean(model, "head", images[:2])
    assert found.shape == (5,)
    # Of 16,000 numbers a channel, of deviation 2 at most.
    assert torch.allclose(found, features.mean(dim=0), atol=4 * 2 / 16000**0.5)


def test_what_works_in_place_behind_it_makes_no_difference():
    model = Ends(F.relu)
    images = trained(model)
    found = trained_mean(model, "head", images[:2])
    model.function = lambda x: F.relu(x, inplace=True)
    assert torch.equal(trained_mean(model, "head", images[:2]), found)


def test_where_something_is_added_it_is_not_told():
    model = Ends(F.relu, beside=True)
    assert trained_mean(model, "head", trained(model)[:2]) is None


def test_without_batchnorm_or_its_statistics_it_is_not_told():
    x = torch.randn(2, 4)
    assert trained_mean(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), "1", x) is None
    without = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    assert trained_mean(without, "1", x) is None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("densenet121", True),
        ("efficientnet_b0", True),
        ("mobilenet_v2", True),
        ("mnasnet0_5", True),
        ("shufflenet_v2_x0_5", True),
        ("resnet18", False),
        ("mobilenet_v3_small", False),
        ("squeezenet1_1", False),
    ],
)
def test_which_of_torchvisions_networks_tell_it(name, told):
    model = torchvision.models.get_model(name, num_classes=4).eval()
    head = head_module(model, name)
    found = trained_mean(model, head, torch.randn(2, 3, 64, 64))
    assert (found is not None) == told
    if told:
        assert found.shape == (model.get_submodule(head).weight.shape[1],)


def test_those_of_a_cut_trunk_are_not_met():
    """Of a ResNet's the first stands on its own among the layers that are cut away."""
    model = torchvision.models.resnet18(num_classes=4).eval()
    x = torch.randn(2, 3, 32, 32)
    cut = find_cut(model, [n for n, _ in model.named_parameters() if n.startswith("layer4")], x)
    assert cut is not None
    assert len(batch_norms(model, x)) == 20
    names = {module: name for name, module in model.named_modules()}
    with beyond(model, cut):
        met = [names[norm] for norm, _ in batch_norms(model, torch.randn(2, *cut.features))]
    assert len(met) == 5
    assert all(name.startswith("layer4") for name in met)
