"""Cropped kernels give the same logits and gradients as whole ones, for any geometry."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pbu_cli.errors import PbuError
from pbu_cli.fisher.diagonal import fisher_diagonal
from pbu_cli.models.frozen_backbone import extract, find_split_point, from_features
from pbu_cli.models.kernels.kernel_cropping import cropped, find_crops, used_kernel_region
from pbu_cli.models.parameter_groups import layout_of, trained_parameters
from pbu_cli.settings import Preprocessing, Schedule, Weights
from pbu_cli.unlearning.forget_set import ForgetSet
from pbu_cli.unlearning.loop import Trainable, unlearn
from tests.fisher.fisher_oracle import fisher_loop


def test_the_used_region_is_where_the_gradient_is_and_gives_the_same_output() -> None:
    left_alone = 0
    sides = list(product(range(1, 6), range(1, 8), (1, 2, 3), range(4), (1, 2)))
    for size, kernel, stride, padding, dilation in sides:
        if size + 2 * padding < dilation * (kernel - 1) + 1:
            continue
        x = torch.rand(1, 1, size, dtype=torch.float64) + 1
        w = (torch.rand(1, 1, kernel, dtype=torch.float64) + 1).requires_grad_()
        z = F.conv1d(x, w, None, stride, padding, dilation)
        z.sum().backward()
        assert w.grad is not None
        used = w.grad[0, 0].nonzero().flatten().tolist()
        found = used_kernel_region(size, kernel, stride, padding, dilation)
        if found is None:
            left_alone += 1
            continue
        taps, less = found
        assert used
        assert (taps.start, taps.stop) == (used[0], used[-1] + 1)
        torch.testing.assert_close(F.conv1d(x, w[:, :, taps], None, stride, less, dilation), z)
    assert left_alone < len(sides) / 10


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.to(dtype)


def test_a_resnet_on_small_images_has_its_last_stage_cropped() -> None:
    model = network()
    x = torch.randn(2, 3, 28, 28, dtype=torch.float64)
    crops = find_crops(model, x)
    assert list(crops) == [f"layer4.{b}.conv{c}.weight" for b in (0, 1) for c in (1, 2)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole, names = model(x), [name for name, _ in model.named_parameters()]
    with cropped(model, crops):
        shapes = {name: tuple(p.shape[1:]) for name, p in model.named_parameters()}
        assert list(shapes) == names
        assert [crops[name].used for name in crops] == [
            (slice(1, 3),) * 2,
            *[(slice(1, 2),) * 2] * 3,
        ]
        assert [shapes[name] for name in crops] == [(256 * 2 * 2,), *[(512,)] * 3]
        torch.testing.assert_close(model(x), whole)
    assert torch.equal(model(x), whole)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not find_crops(model, torch.randn(2, 3, 224, 224, dtype=torch.float64))


def test_unused_weights_change_no_logit_and_have_no_gradient() -> None:
    model = network()
    x = torch.randn(2, 3, 28, 28, dtype=torch.float64)
    crops = find_crops(model, x)
    whole = model(x)
    kernels = {name: model.get_parameter(name) for name in crops}
    for name, g in zip(
        kernels, torch.autograd.grad(whole.square().sum(), list(kernels.values())), strict=True
    ):
        assert bool(crops[name].of(g).ne(0).any())
        assert torch.equal(crops[name].whole(crops[name].of(g), g), g)
        with torch.no_grad():
            used = crops[name].of(kernels[name]).clone()
            crops[name].put(used, kernels[name].fill_(1e3))
    torch.testing.assert_close(model(x), whole)


def test_changed_regions_are_written_back_and_unused_weights_stay() -> None:
    model = network()
    crops = find_crops(model, torch.randn(2, 3, 28, 28, dtype=torch.float64))
    name, crop = list(crops.items())[-1]
    kernel = model.get_parameter(name)
    before = kernel.detach().clone()
    with torch.no_grad(), suppress(ZeroDivisionError), cropped(model, crops):
        part = model.get_parameter(name)
        assert part.is_contiguous()
        part.add_(1)
        raise ZeroDivisionError
    assert model.get_parameter(name) is kernel
    difference = kernel.detach() - before
    torch.testing.assert_close(crop.of(difference), torch.ones_like(crop.of(difference)))
    assert int(difference.count_nonzero()) == crop.of(difference).numel()


@pytest.mark.slow
def test_fisher_equals_a_loop_and_unlearning_equals_that_without_crops() -> None:
    model = network()
    # Not the head: rows without a gradient at theta* make Adam take rounding for a direction.
    black = torch.zeros(2, 3, 28, 28, dtype=torch.float64)
    names, _ = trained_parameters(model, layout_of(model, "resnet18", black), "stage")
    pixels = torch.randint(256, (12, 3, 28, 28), dtype=torch.uint8)
    labels, forgotten = torch.ones(12, dtype=torch.long), torch.arange(4) == 1
    unit = Preprocessing((28, 28), (0.5,) * 3, (0.25,) * 3)
    x = (pixels.double() / 255 - 0.5) / 0.25
    answers = model(x).detach()
    answers[:, 1] += 3  # something to forget
    images = ForgetSet(pixels, labels, forgotten, unit, answers, x)
    schedule = replace(Schedule(), steps=10, batch_size=4)
    fisher = fisher_diagonal(model, [(x, labels)], parameters=names)
    loop = fisher_loop(copy.deepcopy(model), x, labels, "empirical")
    for name in names:
        torch.testing.assert_close(fisher[name], loop[name])
    states, records = [], []
    for crops in ({}, find_crops(model, x)):
        tried = copy.deepcopy(model)
        with cropped(tried, crops):
            records.append(list(unlearn(
                tried, images, fisher, Trainable(names, crops=crops),
                weights=Weights(gamma=1.0, beta=1.0), schedule=schedule,
            )))  # fmt: skip
        states.append(tried.state_dict())
    assert crops
    for one, other in zip(*records, strict=True):
        assert one.learning_rate == pytest.approx(other.learning_rate)
        assert one.check.drift == pytest.approx(other.check.drift)
    for name in names:
        moved = states[0][name] - model.state_dict()[name]
        assert moved.count_nonzero() > 0
        torch.testing.assert_close(
            states[1][name] - model.state_dict()[name], moved, rtol=1e-6, atol=1e-12
        )


class Odd(nn.Module):
    """A network that uses a kernel in a way that a crop would break; `kind` names the way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        mode: Literal["replicate", "zeros"] = "replicate" if kind == "replicating" else "zeros"
        self.one = nn.Conv2d(2, 2, 3, padding="same" if kind == "same" else 1, padding_mode=mode)
        self.two: nn.Module = nn.Identity()
        if kind == "tied":
            self.two = nn.Conv2d(2, 2, 3, padding=1)
            self.two.weight = self.one.weight
        if kind == "subclass":
            self.one = Standardised(2, 2, 3, padding=1)
        if kind == "normalised":
            self.one = nn.utils.parametrizations.weight_norm(self.one)

    def forward(self, x: Tensor) -> Tensor:
        z = self.one(x)
        if self.kind == "twice":
            z = self.one(z)
        if self.kind == "read":
            z = z * self.one.weight.sum()
        if self.kind == "called":
            z = z + F.conv2d(x, self.one.weight, padding=1)
        if self.kind == "shape":
            z = z.view(len(z), -1, self.one.weight.shape[3] - 2)
        return self.two(z).flatten(1)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias, padding=self.padding)


KINDS = [
    "replicating",
    "same",
    "tied",
    "subclass",
    "normalised",
    "twice",
    "read",
    "called",
    "shape",
]


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_with_other_uses_are_not_cropped(kind: str) -> None:
    torch.manual_seed(0)
    model = Odd(kind).eval()
    x = torch.randn(2, 2, 1, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = model(x)
    assert find_crops(model, x) == {}
    assert torch.equal(model(x), whole)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(find_crops(Odd("plain").eval(), x)) == ["one.weight"]


def gradients_of(model: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(logits.square().sum(), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


SIDES = st.tuples(st.integers(1, 6), st.integers(1, 6))


@settings(max_examples=100, deadline=None)
@given(
    size=SIDES,
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)),
    bias=st.booleans(),
)
def test_any_convolution_cropped_has_the_outputs_and_gradients_of_the_whole(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    channels: tuple[int, int, int],
    bias: bool,
) -> None:
    """The first convolution has any geometry; the second sees what the first one leaves."""
    places = [
        (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, k, t, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    assume(min(places) >= 1)
    torch.manual_seed(0)
    inputs, outputs, groups = channels[0] * channels[2], channels[1] * channels[2], channels[2]
    model = nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias),
        nn.Tanh(),
        nn.Conv2d(outputs, 2, 3, padding=1, bias=bias),
        nn.Flatten(),
    )
    model = model.eval().double()
    x = torch.randn(3, inputs, *size, dtype=torch.float64)
    whole = model(x)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = gradients_of(model, whole)
    crops = find_crops(model, x)
    with cropped(model, crops):
        found = model(x)
        torch.testing.assert_close(found, whole)
        parts = gradients_of(model, found)
    for name, gradient in gradients.items():
        crop = crops.get(name)
        part = parts[name] if crop is None else crop.whole(parts[name], gradient)
        torch.testing.assert_close(part, gradient)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_crops_of_every_geometry_give_the_output_of_the_whole(size: int, groups: int) -> None:
    """Against the whole kernel in float64. With one group some crops are matrices."""
    matrices = []
    for kernel, stride, padding, dilation in product((1, 2, 3, 5), (1, 2), (0, 1, 2), (1, 2)):
        if size + 2 * padding < dilation * (kernel - 1) + 1:
            continue
        conv = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups).double()
        model = nn.Sequential(conv).eval()
        x = torch.randn(3, 4, size, size, dtype=torch.float64)
        crops, whole = find_crops(model, x), model(x)
        with cropped(model, crops):
            torch.testing.assert_close(model(x), whole)
        assert "forward" not in conv.__dict__
        matrices += [crop.matrix for crop in crops.values()]
    assert any(matrices) == (groups == 1)


def test_layers_of_the_frozen_backbone_are_not_cropped() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1),
        nn.Flatten(),
    ).eval()  # fmt: skip
    x = torch.randn(2, 2, 1, 1)
    split_point = find_split_point(model, ["2.weight", "2.bias"], x)
    assert split_point is not None
    features, whole = extract(model, split_point, [x])
    assert features is not None
    with from_features(model, split_point):
        crops = find_crops(model, features)
        assert list(crops) == ["2.weight"]
        with cropped(model, crops):
            torch.testing.assert_close(model(features), whole)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_inputs_of_another_size_are_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1)).eval()
    with (
        cropped(model, find_crops(model, torch.ones(1, 1, 1, 1))),
        pytest.raises(PbuError, match=r"expected \(1, 1\), got \(2, 2\)"),
    ):
        model(torch.ones(1, 1, 2, 2))
