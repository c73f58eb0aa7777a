"""What is freed is kept: seen in the page faults of a process that takes it again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from pbu_cli.runtime.device import free_memory, memory

FAULTS = """
import resource, torch
from pbu_cli.machine import keep_freed_memory
if {keeping}:
    keep_freed_memory()

layers = [torch.nn.Linear(1536, 1536) for _ in range(6)]
for layer in layers:
    layer.weight.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
model, x = torch.nn.Sequential(*layers), torch.ones(8, 1536)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for step in range(8):
    if step == 4:
        before = faults()
    model(x).sum().backward()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_what_is_freed_is_kept():
    def faults(keeping: bool) -> list[int]:  # what the system does beside it adds some
        code = FAULTS.format(keeping=keeping)
        return [int(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5)]

    without, kept = max(faults(keeping=False)), min(faults(keeping=True))
    assert without > 1000, "nothing to mend any more: it can go"
    assert kept < without / 4  # runs alike differ by up to a factor of 2.3


def test_there_is_some_memory():
    assert memory() > 1 << 20


def test_what_torch_keeps_of_a_gpu_counts_as_free(monkeypatch):
    for name, value in (("mem_get_info", (100, 900)), ("memory_reserved", 700),
                        ("memory_allocated", 300)):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_memory(torch.device("cuda")) == 500
