"""What holds for every method."""

from __future__ import annotations

import copy
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pbu_cli.benchmark
from pbu_cli.benchmark.methods import NAMES, find
from pbu_cli.benchmark.methods.task import Task
from tests.benchmark.methods.noisy_patterns import logits_of, results_of

README = Path(pbu_cli.benchmark.__file__).parent / "README.md"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pbu"])
def test_every_method_leaves_the_original_alone_and_ends_in_eval_mode(
    task: Task, name: str
) -> None:
    before = copy.deepcopy(task.original.state_dict())
    results = results_of(task, name)
    assert results
    assert all(not module.training for r in results for module in r.network.modules())
    assert all(torch.equal(v, before[k]) for k, v in task.original.state_dict().items())
    assert all(parameter.grad is None for parameter in task.original.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_method_states_its_source_and_what_it_reads_here_and_in_the_readme(
    name: str,
) -> None:
    method = find(name)
    stated = sys.modules[method.unlearn.__module__].__doc__ or ""
    assert method.name == name
    assert re.search("Source: |No paper", stated)
    reads = re.findall(r"\bReads\s+(nothing|both|the\s+forget|the\s+retained|retained)", stated)
    assert len(reads) == 1
    assert reads[0].split()[-1] == method.reads
    assert f"| `{name}` | {method.reads} |" in README.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_what_a_method_says_it_does_not_read_it_can_do_without(task: Task, name: str) -> None:
    if name == "pbu":
        pytest.skip("works on files; see test_pbu.py")
    method = find(name)
    nothing = task.forget.subset(torch.zeros(0, dtype=torch.long))
    only = replace(
        task,
        forget=task.forget if method.reads in ("forget", "both") else nothing,
        retained=task.retained if method.reads in ("retained", "both") else nothing,
    )
    with_all, alone = results_of(task, name)[-1].network, results_of(only, name)[-1].network
    assert torch.equal(logits_of(with_all), logits_of(alone))
