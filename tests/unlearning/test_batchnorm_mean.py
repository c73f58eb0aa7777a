"""The mean features derived from BatchNorms, against those of the images they were trained on."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from pbu_cli.models.features import read_head
from pbu_cli.models.frozen_backbone import find_split_point, from_features
from pbu_cli.unlearning.batchnorm_mean import batch_norms, trained_mean


def trained(affine: bool) -> tuple[nn.Module, torch.Tensor]:
    """A network with two BatchNorms, and the images [n, k, h, w] whose statistics they have."""
    torch.manual_seed(0)
    images = torch.randn(4096, 3, 4, 4) + torch.arange(3.0)[:, None, None]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None, affine=affine), nn.ReLU(),
        nn.Conv2d(8, 5, 2), nn.BatchNorm2d(5, momentum=None, affine=affine), nn.ReLU(),
        nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip
    if affine:
        for path in ("1", "4"):
            nn.init.normal_(model.get_parameter(f"{path}.weight"))
            nn.init.normal_(model.get_parameter(f"{path}.bias"))
    with torch.no_grad():
        model.train()(images)
    return model.eval(), images


@pytest.mark.parametrize("affine", [True, False])
def test_it_is_that_of_the_training_set_whatever_the_scale_and_shift_of_the_inputs(
    affine: bool,
) -> None:
    model, images = trained(affine)
    expected = read_head(model, "7", [images])[0].mean(dim=0)
    others = 3 * images + torch.tensor([5.0, -2.0, 1.0])[:, None, None]
    norms = batch_norms(model, images[:2])
    found = trained_mean(model, "7", norms, others.split(1024))
    unchanged = read_head(model, "7", [others])[0].mean(dim=0)
    assert found.shape == (5,)
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert (unchanged - expected).norm() > 0.5 * expected.norm()


def test_it_leaves_the_network_as_it_was() -> None:
    model, images = trained(affine=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model(images[:9]).detach()
    trained_mean(model, "7", batch_norms(model, images[:2]), [10 * images[:9]])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model(images[:9]), logits)
    assert not any(module.training for module in model.modules())


def test_an_error_leaves_the_network_as_it_was_too() -> None:
    model, images = trained(affine=True)
    norms = batch_norms(model, images[:2])
    with pytest.raises(RuntimeError):
        trained_mean(model, "7", norms, [images[:2, :1]])
    assert not any(module.training for module in model.modules())
    assert all(norm.track_running_stats for norm in norms)


def test_only_batchnorms_with_running_statistics_are_found() -> None:
    x = torch.randn(2, 4)
    assert batch_norms(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), x) == []
    assert batch_norms(nn.BatchNorm1d(4, track_running_stats=False), x) == []
    twice = nn.BatchNorm1d(4).eval()
    assert batch_norms(nn.Sequential(twice, nn.ReLU(), twice), x) == [twice]


def test_batchnorms_in_the_frozen_backbone_are_left_out() -> None:
    """A ResNet's first BatchNorm stands on its own among the layers that are skipped."""
    model = torchvision.models.resnet18(num_classes=4).eval()
    x = torch.randn(2, 3, 32, 32)
    split_point = find_split_point(
        model, [n for n, _ in model.named_parameters() if n.startswith("layer4")], x
    )
    assert split_point is not None
    assert len(batch_norms(model, x)) == 20
    names = {module: name for name, module in model.named_modules()}
    with from_features(model, split_point):
        found = [names[norm] for norm in batch_norms(model, torch.randn(2, *split_point.features))]
    assert len(found) == 5
    assert all(name.startswith("layer4") for name in found)


def test_a_batchnorm_that_ends_the_frozen_backbone_is_left_out() -> None:
    """Its output is used, but it gets no input."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5), nn.BatchNorm1d(5),
                          nn.Linear(5, 2)).eval()  # fmt: skip
    x = torch.randn(2, 3)
    split_point = find_split_point(model, ["2.weight", "4.weight"], x)
    assert split_point is not None
    assert split_point.path == "1"
    with from_features(model, split_point):
        assert batch_norms(model, torch.randn(2, 4)) == [model[3]]
