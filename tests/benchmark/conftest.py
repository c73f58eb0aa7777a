"""A plan on the demo's digits with a small network, trained in about a second."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pbu_cli.benchmark.datasets import Dataset, load_dataset
from pbu_cli.benchmark.demo_digits import DemoFiles, write_digits
from pbu_cli.benchmark.networks import choose_network
from pbu_cli.benchmark.protocol import BenchmarkPlan
from pbu_cli.benchmark.training import Recipe
from tests.networks import small_cnn

ARCH = f"{small_cnn.__file__}:small_cnn"


@pytest.fixture(scope="package")
def images(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    """The demo's digits as files; no network is trained on them."""
    return write_digits(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(scope="package")
def data(images: DemoFiles) -> Dataset:
    return load_dataset("folder", images.train.parent, per_class=40)


@pytest.fixture
def plan(data: Dataset, tmp_path: Path) -> BenchmarkPlan:
    network = choose_network("", ARCH, 10, 1, data.preprocessing.size)
    return BenchmarkPlan(
        data,
        network,
        Recipe(8, rate=0.05, batch_size=32),
        (8,),
        ("head-mask", "pbu"),
        1,
        tmp_path,
        torch.device("cpu"),
    )
