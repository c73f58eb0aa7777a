"""The task that all methods are tested on."""

from __future__ import annotations

import pytest

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.methods.task import Task
from pbu_cli.benchmark.training import train
from tests.benchmark.methods.noisy_patterns import (
    CLASSES,
    FORGET_CLASS,
    RECIPE,
    UNIT,
    accuracies,
    build_untrained,
    images,
    seeded,
)


@pytest.fixture(scope="package")
def task() -> Task:
    """A small CNN that tells four kinds of noisy images apart, and its training images."""
    pixels, labels = images()
    network = build_untrained(0)
    train(network, CountingLoader(pixels, labels, UNIT), RECIPE, generator=seeded(0))
    assert accuracies(network)[1] > 98
    loader = CountingLoader(pixels, labels, UNIT)
    is_forget = labels == FORGET_CLASS
    return Task(
        network,
        build_untrained,
        FORGET_CLASS,
        CLASSES,
        loader.subset(is_forget),
        loader.subset(~is_forget),
        RECIPE,
    )
