"""Work goes on with fewer images when memory runs out, which a network on the CPU pretends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pbu_cli.data.preprocessing import image_logits, normalise
from pbu_cli.fisher import accumulate
from pbu_cli.fisher.diagonal import fisher_diagonal
from pbu_cli.models.frozen_backbone import extract, find_split_point
from pbu_cli.runtime.batch_size_retry import BatchSizeRetry
from pbu_cli.settings import Estimator, Preprocessing


class LimitedMemory(nn.Module):
    """A network that runs out of memory for more than `limit` images.

    It fails in the forward pass, or with `backward` in the middle of the backward pass.
    """

    def __init__(self, limit: int, backward: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)
        self.limit, self.backward, self.failed = limit, backward, 0

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x).tanh()
        if not self.backward:
            self.fail(z)
        elif z.requires_grad:  # after the second layer's squares, before those of the first layer
            z.register_hook(self.fail)
        return self.second(z)

    def fail(self, z: Tensor) -> None:
        if len(z) > self.limit:
            self.failed += 1
            raise torch.OutOfMemoryError(f"no room for {len(z)}")


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("estimator", ["empirical", "exact", "mc"])
def test_the_fisher_pass_goes_on_with_fewer_images_and_gives_the_same(
    backward: bool, estimator: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accumulate, "NO_MEMORY_ERROR", set())
    x, labels = torch.randn(50, 6), torch.randint(4, (50,))
    batches = list(zip(x.split(20), labels.split(20), strict=True))
    ample, scarce = LimitedMemory(50, backward), LimitedMemory(7, backward)
    found = [fisher_diagonal(model, batches, estimator=estimator) for model in (ample, scarce)]
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name])
    assert ample.failed == 0
    assert scarce.failed == 2, "20 and 10 images are too many; all later batches have 5"


def test_a_fisher_pass_over_no_parameters_gives_nothing_on_a_gpu_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accumulate, "NO_MEMORY_ERROR", set())
    model = nn.Linear(6, 4)
    batch = torch.randn(2, 6), torch.tensor([0, 1])
    assert fisher_diagonal(model, [batch], parameters=[]) == {}


def test_forward_passes_go_on_with_fewer_images_and_give_the_same() -> None:
    pixels = torch.randint(256, (50, 1, 2, 3), dtype=torch.uint8)
    preprocessing = Preprocessing((2, 3), (0.5,), (0.5,))
    limited = LimitedMemory(7, backward=False)
    model = nn.Sequential(nn.Flatten(), limited).eval()
    batches = list(normalise(pixels, preprocessing).split(20))
    split_point = find_split_point(model, ["1.second.weight"], batches[0][:2])
    assert split_point is not None
    features, logits = extract(model, split_point, batches)
    logits_of_images = image_logits(model, pixels, preprocessing, 20)
    limited.limit = 50
    expected_features, expected = extract(model, split_point, batches)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(logits_of_images, expected)
    torch.testing.assert_close(features, expected_features)


def test_a_single_image_that_does_not_fit_is_an_error() -> None:
    model = nn.Sequential(nn.Flatten(), LimitedMemory(0, backward=False))
    pixels, preprocessing = torch.zeros(3, 1, 2, 3).byte(), Preprocessing((2, 3), (0.5,), (0.5,))
    with pytest.raises(torch.OutOfMemoryError, match="no room for 1"):
        image_logits(model, pixels, preprocessing)


def test_cudnns_error_halves_the_batch_too_and_other_errors_are_raised() -> None:
    def work(part: slice) -> int:
        if part.stop - part.start > 2:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return int(part.stop - part.start)

    assert list(BatchSizeRetry().each(work, 5)) == [2, 2, 1]

    def broken(part: slice) -> int:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(BatchSizeRetry().each(broken, 5))
