"""Memory: what a process keeps for its next step, and what counts as free."""

from __future__ import annotations

import mmap
import platform
import subprocess
import sys

import pytest
import torch

from pbu_cli.errors import InvalidUsage, PbuError
from pbu_cli.runtime.device import choose_device, free_memory, memory, spare_memory, used_memory

# Prints the page faults of four steps that allocate and free the same memory.
FAULTS = """
import resource, torch
from pbu_cli.runtime.device import keep_freed_memory
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


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc returns memory so soon")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    def faults(keeping: bool) -> list[int]:  # of five runs, since the system adds some faults
        code = FAULTS.format(keeping=keeping)
        return [int(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5)]

    without, kept = max(faults(keeping=False)), min(faults(keeping=True))
    assert without > 1000, "there is nothing to improve any more: keep_freed_memory can go"
    assert kept < without / 4  # equal runs differ by a factor of up to 2.3


def test_the_memory_of_the_machine_is_known() -> None:
    assert memory() > 1 << 20


def test_spare_memory_is_part_of_the_machines_and_used_memory_is_known() -> None:
    cpu = torch.device("cpu")
    assert 0 < spare_memory(cpu) <= memory()
    before = used_memory(cpu)
    with mmap.mmap(-1, 80_000_000) as held:  # a tensor may get memory that the process has already
        held.write(b"1" * len(held))
        assert used_memory(cpu) - before > len(held) / 2


def test_memory_that_torch_reserves_on_a_gpu_and_does_not_use_counts_as_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("mem_get_info", (100, 900)), ("memory_reserved", 700),
                        ("memory_allocated", 300)):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_memory(torch.device("cuda")) == 500


def test_a_device_that_is_unknown_or_absent_is_an_error() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("tpu", "meta"):
        with pytest.raises(InvalidUsage, match="expected auto, cpu, cuda, cuda:N or mps"):
            choose_device(name)
    with pytest.raises(PbuError, match="--device cuda:99"):
        choose_device("cuda:99")
