"""Memory that runs out, on a CPU by pretending: the work goes on with fewer images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pbu_cli.data.preprocessing import normalise
from pbu_cli.fisher import accumulate as squares
from pbu_cli.fisher.diagonal import fisher_diagonal
from pbu_cli.models.frozen_backbone import extract, find_split_point
from pbu_cli.models.inference import logits
from pbu_cli.runtime.batch_size_retry import BatchSizeRetry
from pbu_cli.settings import Preprocessing


class Cramped(nn.Module):
    """A network for which memory ends at `most` images, forward or in the midst of backward."""

    def __init__(self, most: int, backward: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)
        self.most, self.backward, self.failed = most, backward, 0

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x).tanh()
        if not self.backward:
            self.fail(z)
        elif z.requires_grad:  # after the second layer's squares, before the first one's
            z.register_hook(self.fail)
        return self.second(z)

    def fail(self, z: Tensor) -> None:
        if len(z) > self.most:
            self.failed += 1
            raise torch.OutOfMemoryError(f"no room for {len(z)}")


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("estimator", ["empirical", "exact", "mc"])
def test_the_fisher_pass_goes_on_with_fewer_images_and_loses_nothing(
    backward, estimator, monkeypatch
):
    monkeypatch.setattr(squares, "NEVER_OUT", set())
    x, labels = torch.randn(50, 6), torch.randint(4, (50,))
    batches = list(zip(x.split(20), labels.split(20), strict=True))
    wide, narrow = Cramped(50, backward), Cramped(7, backward)
    found = [fisher_diagonal(model, batches, estimator=estimator) for model in (wide, narrow)]
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name])
    assert wide.failed == 0
    assert narrow.failed == 2, "20 and 10 images were too many, and from then on 5 were taken"


def test_on_a_gpu_no_parameters_are_asked_for_too(monkeypatch):
    monkeypatch.setattr(squares, "NEVER_OUT", set())
    model = nn.Linear(6, 4)
    batch = torch.randn(2, 6), torch.tensor([0, 1])
    assert fisher_diagonal(model, [batch], parameters=[]) == {}


def test_forward_passes_go_on_with_fewer_images():
    pixels = torch.randint(256, (50, 1, 2, 3), dtype=torch.uint8)
    how = Preprocessing((2, 3), (0.5,), (0.5,))
    model = nn.Sequential(nn.Flatten(), Cramped(7, backward=False)).eval()
    rounds = list(normalise(pixels, how).split(20))
    cut = find_split_point(model, ["1.second.weight"], rounds[0][:2])
    assert cut is not None
    features, answers = extract(model, cut, rounds)
    found = logits(model, pixels, how, 20)
    model[1].most = 50
    wanted_features, wanted = extract(model, cut, rounds)
    torch.testing.assert_close(answers, wanted)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(features, wanted_features)


def test_a_single_image_that_does_not_fit_is_an_error():
    model = nn.Sequential(nn.Flatten(), Cramped(0, backward=False))
    pixels, how = torch.zeros(3, 1, 2, 3).byte(), Preprocessing((2, 3), (0.5,), (0.5,))
    with pytest.raises(torch.OutOfMemoryError, match="no room for 1"):
        logits(model, pixels, how)


def test_other_words_for_no_memory_are_understood_and_other_errors_go_on():
    def work(part: slice) -> int:
        if part.stop - part.start > 2:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return part.stop - part.start

    assert list(BatchSizeRetry().each(work, 5)) == [2, 2, 1]

    def broken(part: slice) -> int:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(BatchSizeRetry().each(broken, 5))
