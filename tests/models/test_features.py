"""What is read on the way through a network, against running its parts by hand."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pbu_cli.errors import CheckpointError
from pbu_cli.models.features import layers_of_logits, read_head, read_stages
from pbu_cli.models.parameter_groups import blocks, layout_of


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 32),
        ("densenet121", 32),
        ("convnext_tiny", 32),
        ("vgg11", 32),
        ("mobilenet_v3_small", 32),
        pytest.param("vit_b_16", 224, marks=pytest.mark.slow),
        ("squeezenet1_1", 64),
    ],
)
def test_the_logits_follow_from_what_goes_into_the_head(name: str, size: int) -> None:
    model = torchvision.models.get_model(name, num_classes=5).eval()
    x = torch.randn(3, 3, size, size)
    path = layout_of(model, name, x).head_layer
    assert path is not None
    head = model.get_submodule(path)
    features, logits = read_head(model, path, x.split(2))
    assert torch.allclose(logits, model(x), atol=1e-5)
    if isinstance(head, nn.Linear):
        assert torch.allclose(head(features), logits, atol=1e-4)
    else:
        assert features.shape == (3, head.in_channels)
    assert not model._forward_hooks


def test_stages_are_what_the_parts_give_averaged_to_eight_by_eight() -> None:
    first, second = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 1)
    model = nn.Sequential(first, second, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(768, 2))
    x = torch.randn(5, 1, 16, 16)
    found = read_stages(model, ["0", "1", "4"], x.split(2))
    by_hand = first(x).unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)).flatten(1)
    assert torch.allclose(found["0"], by_hand, atol=1e-6)
    before_relu = second(first(x)).unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)).flatten(1)
    assert torch.allclose(found["1"], before_relu, atol=1e-6)
    assert torch.allclose(found["4"], model(x), atol=1e-6)


def test_tokens_are_averaged_and_what_is_no_tensor_is_left_out() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.pair = nn.Linear(4, 4), nn.LSTM(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(self.inner(x))[0][:, 0]

    model, x = Tokens(), torch.randn(3, 7, 4)
    found = read_stages(model, ["inner", "pair"], [x])
    assert list(found) == ["inner"]
    assert torch.allclose(found["inner"], model.inner(x).mean(1))


def test_blocks_of_a_network_come_in_order() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    assert list(blocks(model)) == ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]


@pytest.mark.parametrize("times", [0, 2])
def test_a_layer_that_does_not_give_the_logits_alone_is_named(times: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + sum(self.last(x) for _ in range(times))

    with pytest.raises(CheckpointError, match=f"last is called {times} times in a forward pass"):
        read_head(Net(), "last", [torch.ones(2, 4)])


class Sum(nn.Module):
    """Two layers whose outputs are added with these factors, and one whose output is not used."""

    def __init__(self, one: float, other: float, classes: int = 5) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, classes), nn.Linear(4, classes)
        self.unused, self.factors = nn.Linear(4, classes), (one, other)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.unused(x)
        return self.factors[0] * self.one(x) + self.factors[1] * self.other(x.sin())


@pytest.mark.parametrize(
    ("one", "other", "layers"),
    [
        (0.5, 0.5, ("one", "other")),
        (1.0, 2.0, ("one", "other")),
        (0.0, 1.0, ("other",)),
        (1.0, 0.0, ("one",)),
        (3.0, 0.0, ("one",)),
    ],
)
def test_the_layers_that_make_the_logits_are_told(
    one: float, other: float, layers: tuple[str, ...]
) -> None:
    assert layers_of_logits(Sum(one, other), "other", torch.randn(16, 4)) == layers


def test_no_layer_is_told_where_something_else_makes_the_logits() -> None:
    behind = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
    assert layers_of_logits(behind, "0", torch.randn(16, 4)) == ()
    assert layers_of_logits(Sum(0.5, 0.5, classes=2), "other", torch.randn(2, 4)) == ()  # too few
    softmax = nn.Sequential(nn.Linear(4, 5), nn.LogSoftmax(dim=1))
    assert layers_of_logits(softmax, "0", torch.randn(16, 4)) == ("0",)
    infinite = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5))
    with torch.no_grad():
        infinite[1].weight.fill_(torch.inf)
    assert layers_of_logits(infinite, "1", torch.randn(16, 4)) == ()
