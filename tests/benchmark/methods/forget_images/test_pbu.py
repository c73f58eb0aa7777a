"""The benchmark's `pbu` against the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.benchmark.grid import make_task
from pbu_cli.benchmark.methods import find
from pbu_cli.benchmark.originals import load_or_train
from pbu_cli.benchmark.protocol import BenchmarkPlan
from pbu_cli.io.checkpoint import read
from tests.benchmark.conftest import ARCH
from tests.conftest import Ran


@pytest.mark.slow
def test_pbu_in_the_benchmark_is_pbu_on_the_command_line(
    plan: BenchmarkPlan, pbu: Callable[..., Ran], images: DemoFiles, tmp_path: Path
) -> None:
    """The same checkpoint and the same images give the same weights, whoever calls."""
    network = load_or_train(plan, 0, lambda images: None).network
    task = make_task(plan, network, find("pbu"), 0, 8, lambda images: None)
    (result,) = find("pbu").unlearn(task)
    folder = tmp_path / "class8"
    folder.mkdir()
    for path in sorted((images.train / "8").iterdir())[:40]:
        (folder / path.name).symlink_to(path)
    original, output = plan.folder() / "original-seed0.safetensors", tmp_path / "o.safetensors"
    done = pbu(
        "unlearn", original, "--forget", folder, "-o", output, "--arch", ARCH, "--device", "cpu"
    )
    assert done.code == 0, done.err
    for name, value in read(output).tensors.items():
        assert torch.equal(value, result.network.state_dict()[name]), name
