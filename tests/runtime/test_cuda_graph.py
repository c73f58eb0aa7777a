"""Work recorded for a GPU: on one it gives what it gives by itself; elsewhere by pretending."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbu_cli.fisher.diagonal import fisher_diagonal
from pbu_cli.runtime import cuda_graph as replay
from pbu_cli.runtime.cuda_graph import CudaGraphRunner, recorded
from pbu_cli.settings import DEEP, Preprocessing
from pbu_cli.unlearning.anchor_loss import AnchorLoss
from pbu_cli.unlearning.forget_set import ForgetSet
from pbu_cli.unlearning.loop import unlearn
from pbu_cli.unlearning.model_inversion import synthesise_anchors
from tests.fisher.fisher_oracle import errors, fisher_loop, randomised

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="of a GPU")


def pretending(tensor: Tensor) -> Any:
    return SimpleNamespace(device=torch.device("cuda"), shape=tensor.shape, tensor=tensor)


@pytest.mark.parametrize("records", [True, False])
def test_runs_once_then_is_recorded_once_for_each_shape(records, monkeypatch):
    calls: list[str] = []

    def work(x: Any) -> list[Tensor]:
        calls.append("run")
        return [2 * x.tensor]

    def pretend(work: Any, inputs: Any) -> Any:
        calls.append("record")
        return (lambda x: calls.append("replay") or [2 * x.tensor]) if records else None

    monkeypatch.setattr(replay, "recorded", pretend)
    monkeypatch.setattr(replay, "watched", lambda work, inputs: (work(*inputs), False))
    double = CudaGraphRunner(work)
    for n in range(3):
        assert double(pretending(torch.tensor([float(n)])))[0].item() == 2 * n
    assert calls == ["run", "record", *(["replay"] * 2 if records else ["run"] * 2)]
    calls.clear()
    double(pretending(torch.ones(2)))
    assert calls == ["run"]


def test_what_fails_at_first_is_not_recorded_the_next_time(monkeypatch):
    monkeypatch.setattr(replay, "recorded", None)
    monkeypatch.setattr(replay, "watched", lambda work, inputs: (work(*inputs), False))
    outcomes = [torch.OutOfMemoryError("no room"), None]

    def work(x: Any) -> list[Tensor]:
        if error := outcomes.pop(0):
            raise error
        return [x.tensor]

    double = CudaGraphRunner(work)
    with pytest.raises(torch.OutOfMemoryError):
        double(pretending(torch.ones(1)))
    double(pretending(torch.ones(1)))


def test_what_waits_is_never_recorded(monkeypatch):
    monkeypatch.setattr(replay, "recorded", None)
    monkeypatch.setattr(replay, "watched", lambda work, inputs: (work(*inputs), True))
    double = CudaGraphRunner(lambda x: [2 * x.tensor])
    for n in range(4):
        assert double(pretending(torch.tensor([float(n)])))[0].item() == 2 * n


def test_where_memory_runs_out_recordings_are_let_go(monkeypatch):
    monkeypatch.setattr(replay, "recorded", lambda work, inputs: work)
    room = [True]

    def watched(work: Any, inputs: Any) -> Any:
        if not room[0]:
            raise torch.OutOfMemoryError("no room")
        return work(*inputs), False

    monkeypatch.setattr(replay, "watched", watched)
    double = CudaGraphRunner(lambda x: [2 * x.tensor])
    for _ in range(2):
        double(pretending(torch.ones(3)))
    assert double._by_shape
    room[0] = False
    with pytest.raises(torch.OutOfMemoryError):
        double(pretending(torch.ones(2)))
    assert not double._by_shape


@needs_gpu
def test_a_gpu_replays_what_it_recorded():
    weight = torch.randn(3, 3, device="cuda")
    square = CudaGraphRunner(lambda x: [(x @ weight).square().sum(0)])
    for _ in range(4):
        x = torch.randn(5, 3, device="cuda")
        torch.testing.assert_close(square(x)[0], (x @ weight).square().sum(0))
    weight.mul_(2)
    torch.testing.assert_close(square(x)[0], (x @ weight).square().sum(0))


@needs_gpu
def test_a_gpu_goes_on_where_work_cannot_be_recorded(monkeypatch):
    monkeypatch.setattr(replay, "recorded", None)
    x = torch.ones(2, device="cuda")
    asks = CudaGraphRunner(lambda x: [x * x.sum().item()])
    for n in range(4):
        assert asks(n * x)[0].tolist() == [2 * n * n] * 2
    assert torch.randn(1, device="cuda").isfinite()
    assert torch.cuda.get_sync_debug_mode() == 0


@needs_gpu
def test_what_would_hold_more_memory_than_is_left_is_not_recorded(monkeypatch):
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (0, 1))
    assert recorded(lambda x: [x.repeat(1 << 20)], [torch.ones(8, device="cuda")]) is None


@needs_gpu
@pytest.mark.parametrize("estimator", ["empirical", "exact", "mc"])
def test_the_fisher_pass_of_many_batches_on_a_gpu_is_that_of_the_loop(estimator):
    """Three batches of one size, of which the second is recorded, and a smaller one."""
    torch.manual_seed(0)
    model = randomised(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.Flatten(),
            nn.Linear(32, 4),
        )
    )
    x, labels = torch.randn(14, 3, 8, 8, dtype=torch.double), torch.arange(14) % 4
    gpu = [
        (some.float().cuda(), of_some)
        for some, of_some in zip(x.split(4), labels.split(4), strict=True)
    ]
    found = fisher_diagonal(model.float().cuda(), gpu, estimator=estimator, draws=2, seed=3)
    if estimator == "mc":
        alone = [(some[n : n + 1], of[n : n + 1]) for some, of in gpu for n in range(len(of))]
        wanted = fisher_diagonal(model, alone, estimator=estimator, draws=2, seed=3)
    else:
        wanted = fisher_loop(model.cpu().double(), x, labels, estimator)
    double = [{n: t.double().cpu() for n, t in these.items()} for these in (found, wanted)]
    assert errors(*double)[0] < 1e-4


@needs_gpu
@pytest.mark.parametrize("count", [0, 200])
def test_the_loop_on_a_gpu_is_the_same_recorded(count, monkeypatch):
    """Without anchors, and with them, where every fifth step runs as it is."""
    schedule = replace(DEEP.schedule, steps=60)
    ends, kept = [], []
    real = replay.recorded
    for records in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
        model, gone = model.eval().cuda(), torch.tensor([False, False, True, False], device="cuda")
        pixels = torch.randint(256, (100, 2, 4, 4), dtype=torch.uint8, device="cuda")
        labels = torch.full((100,), 2, device="cuda")
        how = Preprocessing((4, 4), (0.5, 0.5), (0.25, 0.25))
        images = ForgetSet(pixels, labels, gone, how, torch.empty(0))
        inputs = images.inputs(torch.arange(100, device="cuda"))
        images = replace(images, answers=model(inputs).detach())
        anchor_loss = None
        if count:
            made = synthesise_anchors(model, "3", inputs, ~gone, count=count, schedule=schedule)
            anchor_loss = AnchorLoss(model, "3", made, gone, DEEP.weights, schedule)

        def watched(work: Any, inputs: Any, records: bool = records) -> Any:
            kept.append(real(work, inputs) if records else None)
            return kept[-1]

        monkeypatch.setattr(replay, "recorded", watched)
        fisher = {name: torch.ones_like(p) for name, p in model.named_parameters()}
        run = unlearn(
            model, images, fisher,
            trained=[*fisher], head=["3.weight", "3.bias"], weights=DEEP.weights,
            schedule=schedule, anchor_loss=anchor_loss,
        )  # fmt: skip
        list(run)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert kept[0] is not None
    assert len(kept) == 2
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-4)
