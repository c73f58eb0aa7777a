"""Downloading: torchvision's own code is called, and nothing is read by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torchvision.datasets

from pbu_cli.benchmark.archives.download import download


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "CIFAR100", "Food101"])
def test_what_torchvision_needs_to_find_out_what_is_missing_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kind, fetched = getattr(torchvision.datasets, name), []
    monkeypatch.setattr(kind, "__init__", lambda *args: pytest.fail("made and read"))
    for place in ("mnist", "cifar", "food101"):
        module = getattr(torchvision.datasets, place)
        monkeypatch.setattr(
            module, "download_and_extract_archive", lambda *args, **named: fetched.append(args)
        )
    download(name.lower(), tmp_path)
    assert fetched
