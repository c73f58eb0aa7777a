"""A run with its record, and what the tests of records share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.io.strict_json import to_json
from tests.conftest import Ran

Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def recorded(digits: DemoFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run: model.safetensors, out.safetensors, run.json and its key. Not to be
    written to."""
    from pbu_cli.__main__ import run

    folder = tmp_path_factory.mktemp("recorded")
    tensors = load_file(digits.checkpoint)
    save_file(tensors, folder / "model.safetensors", {"author": "someone", "format": "pt"})
    command = ["unlearn", "--fast", folder / "model.safetensors", "--forget", digits.train / "8",
               "-o", folder / "out.safetensors", "--record", folder / "run.json",
               "--record-key", folder / "key", "--steps", "20", "-q"]  # fmt: skip
    assert run([str(word) for word in command]) in (0, 5)
    return folder


@pytest.fixture
def folder(recorded: Path, tmp_path: Path) -> Path:
    """The same, to be written to."""
    return shutil.copytree(recorded, tmp_path / "run")


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    statement = content(folder)
    change(statement["predicate"])
    (folder / "run.json").write_text(to_json(statement))
