"""What is freed is kept: seen in the page faults of a process that takes it again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from pbu_cli.machine import memory

FAULTS = """
import resource, torch
from pbu_cli.machine import keep_freed_memory
if {keeping}:
    keep_freed_memory()

def step():
    layers = [torch.ones(2 << 20) for _ in range(6)]  # 48 MB in blocks of 8

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

step(), step()
before = faults()
step(), step()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_what_is_freed_is_kept():
    found = [
        int(subprocess.check_output([sys.executable, "-c", FAULTS.format(keeping=keeping)]))
        for keeping in (False, True)
    ]
    assert found[0] > 1000, "nothing to mend any more: `keep_freed_memory` can go"
    assert found[1] < found[0] / 10


def test_there_is_some_memory():
    assert memory() > 1 << 20
