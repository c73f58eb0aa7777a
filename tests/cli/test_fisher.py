"""`pbu fisher`, and Fisher files that `pbu unlearn --fisher` reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pbu_cli.benchmark.demo_digits import DemoFiles
from tests.cli.conftest import FAST, sha256
from tests.conftest import Ran


@pytest.mark.slow
def test_a_fisher_file_gives_the_same_result_as_measuring_again(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    fisher = tmp_path / "f.safetensors"
    measured = pbu("fisher", digits.checkpoint, "--forget", digits.train / "8", "-o", fisher,
                   "--layers", "last")  # fmt: skip  # --fast trains this layer
    assert measured.code == 0
    sums = set()
    for number, flags in enumerate(([], ["--fisher", fisher])):
        output = tmp_path / f"{number}.safetensors"
        done = pbu("unlearn", digits.checkpoint, "--forget", digits.train / "8", "-o", output,
                   *FAST, *flags)  # fmt: skip
        assert done.code in (0, 5)
        sums.add(sha256(output))
    assert len(sums) == 1


@pytest.mark.parametrize("what", ["images", "checkpoint", "layers", "kind", "mean"])
def test_a_fisher_file_of_something_else_is_refused(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, what: str
) -> None:
    fisher = tmp_path / "f.safetensors"
    flags = ["--layers", "head" if what == "layers" else "last"]
    forget = digits.train / "8"
    assert pbu("fisher", digits.checkpoint, "--forget", forget, "-o", fisher, *flags).code == 0
    source = digits.checkpoint
    more: list[str] = []
    if what == "images":
        forget = tmp_path / "8"
        shutil.copytree(digits.train / "8", forget)
        next(forget.iterdir()).unlink()
    elif what == "checkpoint":
        tensors = load_file(source)
        tensors["fc.bias"] += 0.1
        source = tmp_path / "other.safetensors"
        save_file(tensors, source)
    elif what == "kind":
        save_file(load_file(fisher), fisher)
    elif what == "mean":
        more = ["--mean", "0.4", "--std", "0.5"]
    done = pbu("unlearn", source, "--forget", forget, "--fisher", fisher, *more,
               "-o", tmp_path / "out.safetensors")  # fmt: skip
    assert done.code == 3
    assert "measure it again" in done.err or "write one" in done.err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.slow
def test_a_fisher_file_of_eight_bits_is_read_like_any(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    fisher = tmp_path / "f.safetensors"
    forget = digits.train / "8"
    pbu("fisher", digits.checkpoint, "--forget", forget, "-o", fisher)
    with safe_open(fisher, "pt") as file:
        metadata = file.metadata()
    tensors = {name: -torch.ones_like(t) for name, t in load_file(fisher).items()}
    save_file({n: t.to(torch.float8_e4m3fn) for n, t in tensors.items()}, fisher, metadata)
    done = pbu("unlearn", digits.checkpoint, "--forget", forget, "--fisher", fisher)
    assert done.code == 3
    assert "negative or not finite" in done.err
