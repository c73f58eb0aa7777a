"""The frozen backbone: a network that takes its features gives the logits of the whole network."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from pbu_cli.fisher.diagonal import fisher_diagonal
from pbu_cli.models.frozen_backbone import extract, find_split_point, from_features
from pbu_cli.models.layer_order import Layout
from pbu_cli.models.parameter_groups import layout_of, trained_parameters

# builder -> image size, the module expected as split point
BUILDERS = {
    "resnet18": (32, "layer3"),
    "densenet121": (32, "features.transition3"),
    "convnext_tiny": (32, "features.6"),
    "efficientnet_b0": (32, "features.6"),
    "mobilenet_v3_small": (32, "features.8"),
    "shufflenet_v2_x0_5": (32, "stage3"),
    "regnet_y_400mf": (32, "trunk_output.block3"),
    "squeezenet1_1": (64, "features.9"),
    "vgg11": (32, "avgpool"),
    "googlenet": (64, "maxpool4"),
    "swin_t": (32, "features.6"),
    "vit_b_16": (224, "encoder.layers.encoder_layer_8"),
}


def network(builder: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if builder == "googlenet" else {}
    return torchvision.models.get_model(builder, weights=None, num_classes=5, **options).eval()


def resnet18_layout(model: nn.Module) -> Layout:
    dtype = next(model.parameters()).dtype
    return layout_of(model, "resnet18", torch.zeros(2, 3, 32, 32, dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize("builder", BUILDERS)
def test_from_features_the_logits_are_those_of_the_whole_network(builder: str) -> None:
    size, place = BUILDERS[builder]
    model = network(builder)
    x = torch.randn(3, 3, size, size)
    names, _ = trained_parameters(model, layout_of(model, builder, x), "last")
    split_point = find_split_point(model, names, x[:2])
    assert split_point is not None
    assert split_point.path == place
    features, logits = extract(model, split_point, x.split(2))
    assert features is not None
    whole = model(x)
    torch.testing.assert_close(logits, whole)
    with from_features(model, split_point):
        torch.testing.assert_close(model(features), logits)
    assert torch.equal(model(x), whole)


def test_the_fisher_diagonal_from_features_is_that_of_the_whole_network() -> None:
    model = network("resnet18").double()
    names, _ = trained_parameters(model, resnet18_layout(model), "last")
    x, labels = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    whole = fisher_diagonal(model, [(x, labels)], parameters=names)
    split_point = find_split_point(model, names, x[:2])
    assert split_point is not None
    features, _ = extract(model, split_point, x.split(2))
    assert features is not None
    with from_features(model, split_point):
        tail = fisher_diagonal(model, [(features, labels)], parameters=names)
    for name in names:
        torch.testing.assert_close(tail[name], whole[name])


def test_for_the_head_alone_the_split_point_is_the_pooling() -> None:
    model = network("resnet18")
    split_point = find_split_point(model, ["fc.weight", "fc.bias"], torch.randn(2, 3, 32, 32))
    assert split_point is not None
    assert split_point.path == "avgpool"


def test_there_is_no_split_point_before_the_first_layer() -> None:
    model = network("resnet18")
    names = [name for name, _ in model.named_parameters()]
    assert find_split_point(model, names, torch.randn(2, 3, 32, 32)) is None


class Skip(nn.Module):
    """The trained layer sees the output of the first layer too, past the second."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.one(x)
        return self.head(self.two(one) + one)


class InPlace(nn.Module):
    """The layer after the split point overwrites the features."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(2, 3), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.one(x).mul_(2))


def test_a_network_with_a_skip_is_split_before_it() -> None:
    split_point = find_split_point(Skip().eval(), ["head.weight"], torch.randn(2, 2))
    assert split_point is not None
    assert split_point.path == "one"


def test_features_that_would_be_overwritten_are_copied() -> None:
    model, x = InPlace().eval(), torch.randn(2, 2)
    split_point = find_split_point(model, ["head.weight"], x)
    assert split_point is not None
    assert (split_point.path, split_point.in_place) == ("one", True)
    features, logits = extract(model, split_point, [x])
    assert features is not None
    with from_features(model, split_point):
        for _ in range(2):
            torch.testing.assert_close(model(features), logits)


class InPlaceBefore(Skip):
    """Before the split point an output of a frozen module is changed in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x)
        x += torch.arange(3.0)
        return self.head(self.two(torch.relu_(x)))


def test_operations_in_place_before_the_split_point_do_no_harm() -> None:
    model, x = InPlaceBefore().eval(), torch.randn(2, 2)
    split_point = find_split_point(model, ["head.weight"], x)
    assert split_point is not None
    assert split_point.path == "two"
    features, logits = extract(model, split_point, [x])
    assert features is not None
    with from_features(model, split_point):
        torch.testing.assert_close(model(features), logits)


def test_a_densenet_is_split_before_its_relu_in_place() -> None:
    model = network("densenet121")
    split_point = find_split_point(model, ["classifier.weight"], torch.randn(2, 3, 32, 32))
    assert split_point is not None
    assert split_point.path == "features"


class Bare(nn.Module):
    """A bare trained parameter stands before a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.one, self.head = nn.Linear(2, 3), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.one(x * self.scale))


def test_no_split_point_depends_on_a_trained_parameter() -> None:
    model = Bare().eval()
    assert find_split_point(model, ["scale", "head.weight"], torch.randn(2, 2)) is None
    split_point = find_split_point(model, ["head.weight"], torch.randn(2, 2))
    assert split_point is not None
    assert split_point.path == "one"


def test_flags_and_forwards_are_as_before() -> None:
    model = network("resnet18")
    names, _ = trained_parameters(model, resnet18_layout(model), "last")
    model.conv1.weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    split_point = find_split_point(model, names, torch.randn(2, 3, 32, 32))
    with pytest.raises(RuntimeError), from_features(model, split_point):
        raise RuntimeError
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert not any("forward" in module.__dict__ for module in model.modules())
