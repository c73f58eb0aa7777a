"""Work that is recorded and replayed gives the same results; without a GPU, by pretending."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbu_cli.fisher.diagonal import fisher_diagonal
from pbu_cli.runtime import cuda_graph
from pbu_cli.runtime.cuda_graph import CudaGraphRunner, record
from pbu_cli.settings import DEFAULT, Estimator, Preprocessing
from pbu_cli.unlearning.anchor_loss import AnchorLoss
from pbu_cli.unlearning.forget_set import ForgetSet
from pbu_cli.unlearning.loop import Trainable, unlearn
from pbu_cli.unlearning.model_inversion import synthesise_anchors
from tests.fisher.fisher_oracle import errors, fisher_loop, randomised


def on_a_gpu(tensor: Tensor) -> Any:
    """Pretends to be a tensor on a GPU."""
    return SimpleNamespace(device=torch.device("cuda"), shape=tensor.shape, tensor=tensor)


@pytest.mark.parametrize("records", [True, False])
def test_work_runs_once_and_is_recorded_once_for_each_shape(
    records: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def work(x: Any) -> list[Tensor]:
        calls.append("run")
        return [2 * x.tensor]

    def pretend(work: Any, inputs: Any) -> Any:
        calls.append("record")
        return (lambda x: calls.append("replay") or [2 * x.tensor]) if records else None

    monkeypatch.setattr(cuda_graph, "record", pretend)
    monkeypatch.setattr(cuda_graph, "run_watched", lambda work, inputs: (work(*inputs), False))
    double = CudaGraphRunner(work)
    for n in range(3):
        assert double(on_a_gpu(torch.tensor([float(n)])))[0].item() == 2 * n
    assert calls == ["run", "record", *(["replay"] * 2 if records else ["run"] * 2)]
    calls.clear()
    double(on_a_gpu(torch.ones(2)))
    assert calls == ["run"]


def test_work_that_fails_at_first_is_not_recorded_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_graph, "record", None)
    monkeypatch.setattr(cuda_graph, "run_watched", lambda work, inputs: (work(*inputs), False))
    outcomes = [torch.OutOfMemoryError("no room"), None]

    def work(x: Any) -> list[Tensor]:
        if error := outcomes.pop(0):
            raise error
        return [x.tensor]

    double = CudaGraphRunner(work)
    with pytest.raises(torch.OutOfMemoryError):
        double(on_a_gpu(torch.ones(1)))
    double(on_a_gpu(torch.ones(1)))


def test_work_that_waits_for_the_gpu_is_never_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "record", None)
    monkeypatch.setattr(cuda_graph, "run_watched", lambda work, inputs: (work(*inputs), True))
    double = CudaGraphRunner(lambda x: [2 * x.tensor])
    for n in range(4):
        assert double(on_a_gpu(torch.tensor([float(n)])))[0].item() == 2 * n


def test_graphs_are_released_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "record", lambda work, inputs: work)
    enough = [True]

    def run_watched(work: Any, inputs: Any) -> Any:
        if not enough[0]:
            raise torch.OutOfMemoryError("no room")
        return work(*inputs), False

    monkeypatch.setattr(cuda_graph, "run_watched", run_watched)
    double = CudaGraphRunner(lambda x: [2 * x.tensor])
    for _ in range(2):
        double(on_a_gpu(torch.ones(3)))
    assert double._by_shape
    enough[0] = False
    with pytest.raises(torch.OutOfMemoryError):
        double(on_a_gpu(torch.ones(2)))
    assert not double._by_shape


@pytest.mark.gpu
def test_a_gpu_replays_what_it_recorded() -> None:
    weight = torch.randn(3, 3, device="cuda")
    square = CudaGraphRunner(lambda x: [(x @ weight).square().sum(0)])
    for _ in range(4):
        x = torch.randn(5, 3, device="cuda")
        torch.testing.assert_close(square(x)[0], (x @ weight).square().sum(0))
    weight.mul_(2)
    torch.testing.assert_close(square(x)[0], (x @ weight).square().sum(0))


@pytest.mark.gpu
def test_a_gpu_runs_work_that_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "record", None)
    x = torch.ones(2, device="cuda")
    waiting = CudaGraphRunner(lambda x: [x * x.sum().item()])
    for n in range(4):
        assert waiting(n * x)[0].tolist() == [2 * n * n] * 2
    assert torch.randn(1, device="cuda").isfinite()
    assert torch.cuda.get_sync_debug_mode() == 0


@pytest.mark.gpu
def test_work_that_needs_more_memory_than_is_left_is_not_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (0, 1))
    assert record(lambda x: [x.repeat(1 << 20)], [torch.ones(8, device="cuda")]) is None


@pytest.mark.gpu
@pytest.mark.parametrize("estimator", ["empirical", "exact", "mc"])
def test_the_fisher_pass_over_many_batches_on_a_gpu_gives_what_the_slow_loop_gives(
    estimator: Estimator,
) -> None:
    """Three batches have one size, of which the second is recorded, and the last one is smaller."""
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
        (inputs.float().cuda(), some_labels)
        for inputs, some_labels in zip(x.split(4), labels.split(4), strict=True)
    ]
    found = fisher_diagonal(model.float().cuda(), gpu, estimator=estimator, draws=2, seed=3)
    if estimator == "mc":
        single = [(z[n : n + 1], y[n : n + 1]) for z, y in gpu for n in range(len(y))]
        expected = fisher_diagonal(model, single, estimator=estimator, draws=2, seed=3)
    else:
        expected = fisher_loop(model.cpu().double(), x, labels, estimator)
    double = [{n: t.double().cpu() for n, t in these.items()} for these in (found, expected)]
    assert errors(*double)[0] < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("count", [0, 200])
def test_the_unlearning_loop_on_a_gpu_gives_the_same_with_and_without_recording(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without anchors; with anchors every fifth step runs without a graph."""
    schedule = replace(DEFAULT.schedule, steps=60)
    ends: list[Tensor] = []
    graphs: list[Any] = []
    real = cuda_graph.record
    for records in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
        model, forgotten = model.eval().cuda(), torch.arange(4, device="cuda") == 2
        pixels = torch.randint(256, (100, 2, 4, 4), dtype=torch.uint8, device="cuda")
        labels = torch.full((100,), 2, device="cuda")
        preprocessing = Preprocessing((4, 4), (0.5, 0.5), (0.25, 0.25))
        images = ForgetSet(pixels, labels, forgotten, preprocessing, torch.empty(0))
        inputs = images.inputs(torch.arange(100, device="cuda"))
        images = replace(images, logits=model(inputs).detach())
        anchor_loss = None
        if count:
            made = synthesise_anchors(
                model, "3", inputs, ~forgotten, count=count, schedule=schedule
            )
            anchor_loss = AnchorLoss(model, "3", made, forgotten, DEFAULT.weights, schedule)

        def record_or_not(work: Any, inputs: Any, records: bool = records) -> Any:
            graphs.append(real(work, inputs) if records else None)
            return graphs[-1]

        monkeypatch.setattr(cuda_graph, "record", record_or_not)
        fisher = {name: torch.ones_like(p) for name, p in model.named_parameters()}
        run = unlearn(
            model, images, fisher, Trainable([*fisher], ["3.weight", "3.bias"]),
            weights=DEFAULT.weights, schedule=schedule, anchor_loss=anchor_loss,
        )  # fmt: skip
        list(run)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert graphs[0] is not None
    assert len(graphs) == 2
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-4)
