"""The demo's network and its data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pbu_cli.benchmark import demo_digits
from pbu_cli.benchmark.training import Recipe


def test_the_digits_are_split_into_class_folders(tmp_path: Path) -> None:
    files = demo_digits.write_digits(tmp_path)
    for folder, images in ((files.train, 1347), (files.test, 450)):
        assert sorted(path.name for path in folder.iterdir()) == list(map(str, range(10)))
        assert len(list(folder.glob("*/*.png"))) == images


def test_every_step_is_reported_and_one_seed_gives_one_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo_digits, "RECIPE", Recipe(epochs=2, rate=0.03, batch_size=4))
    pixels = torch.arange(7 * 64).reshape(7, 1, 8, 8).to(torch.uint8)
    steps: list[int] = []
    networks = [
        demo_digits.train_digits(pixels, torch.arange(7), torch.device("cpu"), on_step=steps.append)
        for _ in range(2)
    ]
    assert demo_digits.total_steps(7) == 4  # the last batch of three images is kept
    assert steps == 2 * [1, 2, 3, 4]
    assert not networks[0].training
    one, other = (network.state_dict() for network in networks)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
