"""Files of training programs from start to end: what is beside the network, and which one it is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pbu_cli.benchmark.demo_digits import DemoFiles
from tests.cli.conftest import FAST
from tests.conftest import Ran


@pytest.mark.slow
def test_what_a_lightning_module_holds_beside_the_network_stays_bit_for_bit_and_is_named(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    beside = {"criterion.weight": torch.rand(10), "steps": torch.tensor(7)}
    tensors = {f"model.{name}": t for name, t in load_file(digits.checkpoint).items()} | beside
    content = {"state_dict": tensors, "hyper_parameters": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "last.ckpt")
    done = pbu("unlearn", tmp_path / "last.ckpt", "--forget", digits.train / "8", *FAST)
    assert done.code in (0, 5)
    said = " ".join(done.err.split())
    assert f"2 of {len(tensors)} tensors are no part of the network; an output keeps them" in said
    assert "criterion.weight, steps" in said
    after = load_file(tmp_path / "last.unlearned.safetensors")
    assert after.keys() == tensors.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in beside.items())


@pytest.fixture
def averaged(digits: DemoFiles, tmp_path: Path) -> Path:
    """A file with a network that gives wrong answers and its moving average, which is right."""
    tensors = load_file(digits.checkpoint)
    torch.save(
        {
            "model": {name: torch.zeros_like(tensor) for name, tensor in tensors.items()},
            "model_ema": {f"module.{name}": tensor for name, tensor in tensors.items()},
            "args": argparse.Namespace(lr=0.1),
        },
        tmp_path / "best.pth.tar",
    )
    return tmp_path / "best.pth.tar"


def test_one_of_two_state_dicts_is_named_or_nothing_is_done(
    pbu: Callable[..., Ran], digits: DemoFiles, averaged: Path
) -> None:
    done = pbu("fisher", averaged, "--forget", digits.train / "8", "-q")
    assert done.code == 3
    assert "pass --state-dict KEY" in done.err
    assert done.err.count("\n") == 1
    done = pbu("fisher", averaged, "--forget", digits.train / "8", "--state-dict", "ema", "-q")
    assert done.code == 2
    assert "expected one of: model (" in done.err
    assert [path.name for path in averaged.parent.iterdir()] == [averaged.name]


@pytest.mark.slow
def test_the_chosen_state_dict_is_said_written_and_recorded(
    pbu: Callable[..., Ran], digits: DemoFiles, averaged: Path
) -> None:
    folder = averaged.parent
    output, record = folder / "out.safetensors", folder / "run.json"
    chosen = ["--state-dict", "model_ema"]
    done = pbu("unlearn", averaged, "--forget", digits.train / "8", *FAST, *chosen, "-o", output,
               "--record", record)  # fmt: skip
    assert done.code in (0, 5)
    assert "model_ema" in done.err
    assert "not in the output: model" in " ".join(done.err.split())
    names = {f"module.{name}" for name in load_file(digits.checkpoint)}
    assert load_file(output).keys() == names
    entry: dict[str, Any] = json.loads(record.read_text())["predicate"]["files"][1]
    assert (entry["role"], entry["state_dict"]) == ("input", "model_ema")
    assert pbu("verify", record).code == 0
    done = pbu("evaluate", output, "--original", averaged, "--forget", digits.train / "8", *chosen,
               "--record", record, "-q")  # fmt: skip
    assert done.code == 0, done.err
    assert pbu("verify", record).code == 0
    torch.save({"model_ema": {"a": torch.ones(2, 2)}}, averaged)
    assert pbu("verify", record).code == 5
    torch.save({"net": {"a": torch.ones(2, 2)}}, averaged)
    assert pbu("verify", record).code == 5


@pytest.mark.slow
def test_a_run_without_the_flag_writes_no_word_of_it(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    record = tmp_path / "run.json"
    pbu("unlearn", digits.checkpoint, "--forget", digits.train / "8", *FAST, "-q",
        "-o", tmp_path / "o.safetensors", "--record", record)  # fmt: skip
    assert "state_dict" not in record.read_text()
    assert b"state_dict" not in (tmp_path / "o.safetensors").read_bytes()
