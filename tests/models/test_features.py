"""What is read on the way through a network, against running its parts by hand."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pbu_cli.errors import CheckpointError
from pbu_cli.models.features import read_head, read_stages
from pbu_cli.models.parameter_groups import blocks, head_module


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
    path = head_module(model, name)
    assert path is not None
    head = model.get_submodule(path)
    x = torch.randn(3, 3, size, size)
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
