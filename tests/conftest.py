"""What several test files share: markers, a way to run a command line, a network, ../shared."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pbu_cli.__main__ import run
from pbu_cli.benchmark.demo_digits import DemoFiles, train_digits, write_checkpoint, write_digits
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import list_groups, split_by_subfolder
from tests.measure.archives import SHARED, unpack

SLOW_FIXTURES = {"clean", "recorded", "unlearned"}  # each runs whole commands


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their fixtures, and skip `gpu` where there is no CUDA."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if "shared" in fixtures:
            item.add_marker(pytest.mark.shared)
        if fixtures & SLOW_FIXTURES:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs CUDA, and there is none"))


@dataclass(frozen=True)
class Ran:
    """What one command line did: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def pbu(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command line in this process, through the same door as the console script."""

    def call(*arguments: object) -> Ran:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    """The demo's images and a ResNet-18 trained on them, on disk. Not to be written to."""
    files = write_digits(tmp_path_factory.mktemp("digits"))
    groups = split_by_subfolder(list_groups([str(files.train)])[0])
    images = decode(groups, channels=1)
    network = train_digits(images.pixels, images.group, torch.device("cpu"))
    write_checkpoint(network, files.checkpoint)
    return files


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of checkpoints and images beside the project, which only CI requires."""
    if not SHARED.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{SHARED} is missing in CI")
        pytest.skip(f"{SHARED} is not here: its checkpoints and images are not part of the project")
    return SHARED


@pytest.fixture(scope="session")
def cifar10(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked images of CIFAR-10, with the folders train/<class> and test/<class>."""
    return unpack(shared / "data" / "cifar10.tar.xz", tmp_path_factory.mktemp("cifar10"))
