"""Seconds and peak memory of reading a large checkpoint, in a process of its own.

    python -m tests.measure.benchmarks.read_checkpoint [--gigabytes 4] [--before DIR] [--folder DIR]

A `.pt` and a `.safetensors` file of four tensors are written to a temporary folder inside DIR, and
`pbu_cli.io.checkpoint.read` reads them: that of this checkout, and with --before that of a checkout
of f14c514, where the module is `pbu_cli.checkpoint`. The peak is the resident memory of the process
less that of the same process before it reads.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

READ = """
import importlib, importlib.util, sys, time
from pathlib import Path
new = importlib.util.find_spec("pbu_cli.io") is not None
checkpoint = importlib.import_module("pbu_cli.io.checkpoint" if new else "pbu_cli.checkpoint")
def peak():  # getrusage would have that of the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
path, before = Path(sys.argv[1]), peak()
start = time.perf_counter()
found = checkpoint.read(path)
seconds = time.perf_counter() - start
print(f"{seconds:.1f} {(peak() - before) / path.stat().st_size:.3f}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    checkouts = {"after": Path(__file__).resolve().parents[3]}
    if given.before is not None:
        checkouts = {"before": given.before.resolve(), **checkouts}
    count = int(given.gigabytes * 1e9 / 16)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for suffix in (".pt", ".safetensors"):
            tensors = {f"layer{k}.weight": torch.full((count,), 0.5) for k in range(4)}
            path = Path(folder) / f"large{suffix}"
            if suffix == ".pt":
                torch.save(tensors, path)
            else:
                save_file(tensors, path)
            del tensors
            size = path.stat().st_size / 1e9
            for which, package in checkouts.items():
                done = subprocess.run(
                    [sys.executable, "-c", READ, str(path)], check=False, text=True, cwd=folder,
                    env={**os.environ, "PYTHONPATH": str(package)}, capture_output=True,
                )  # fmt: skip
                seconds, times = done.stdout.split() if done.returncode == 0 else ("-", "-")
                print(f"{suffix:<13} {size:.2f} GB  {which:<7} {seconds} s, {times} times the file")
                if done.returncode:
                    print(done.stderr[-500:])
            path.unlink()


if __name__ == "__main__":
    main()
