"""Bad input: one line that says what is wrong, a documented exit code, and nothing written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import squeezenet1_1

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.pipeline import sanitize
from tests.cli.conftest import FAST, sha256
from tests.conftest import Ran

Run = Callable[..., Ran]
PAIR = """
from pbu_cli.benchmark.demo_digits import ARCHITECTURE
from pbu_cli.models.sources.torchvision_build import build
def pair():
    network = build(ARCHITECTURE)
    network.register_forward_hook(lambda module, inputs, logits: (logits, inputs))
    return network
"""


# Bad input: what is wrong -> exit code and a part of the one line.


def bad_cases(digits: DemoFiles, folder: Path) -> dict[str, tuple[list[object], int, str]]:
    """Name -> arguments behind `unlearn`, exit code, words of the line."""
    forget = digits.train / "8"
    eights = sorted(forget.iterdir())
    tensors = load_file(digits.checkpoint)
    given = {}
    for name, content in {"empty": b"", "noise": bytes(range(200)),
                          "truncated": digits.checkpoint.read_bytes()[:5000]}.items():  # fmt: skip
        given[name] = folder / f"{name}.safetensors"
        given[name].write_bytes(content)
    for name, change in {
        "nan": {"fc.bias": torch.full((10,), float("nan"))},
        "misfit": {"fc.weight": torch.zeros(10, 511)},
    }.items():
        given[name] = folder / f"{name}.safetensors"
        save_file({**tensors, **change}, given[name])
    given["squeezenet"] = folder / "squeezenet.safetensors"
    save_file(squeezenet1_1(num_classes=10).state_dict(), given["squeezenet"])
    (folder / "own.py").write_text(PAIR)
    (folder / "configured").mkdir()
    shutil.copy(digits.checkpoint, folder / "configured" / "m.safetensors")
    (folder / "configured" / "config.json").write_text('{"num_classes": 9}')
    for name in ("none", "text", "one_bad", "no\x1b[31m\nrm -rf"):
        (folder / name).mkdir()
    (folder / "text" / "notes.txt").write_text("hello")
    for path in eights[:20]:
        shutil.copy(path, folder / "one_bad")
    (folder / "one_bad" / "broken.png").write_bytes(eights[0].read_bytes()[:40])
    wrong = shutil.copytree(forget, folder / "class3")
    taken = folder / "taken.safetensors"
    taken.write_bytes(b"precious")
    ok: list[object] = [digits.checkpoint, "--forget", forget]
    return {
        "no checkpoint": ([folder / "no.safetensors", "--forget", forget], 3, "No such file"),
        "empty checkpoint": ([given["empty"], "--forget", forget], 3, "empty file"),
        "truncated checkpoint": ([given["truncated"], "--forget", forget], 3, "not a safetensors"),
        "not a checkpoint": ([given["noise"], "--forget", forget], 3, "not a safetensors"),
        "NaN in the weights": ([given["nan"], "--forget", forget], 3, "NaN or infinity"),
        "shapes of no architecture": ([given["misfit"], "--forget", forget], 3, "closest"),
        "wrong --arch": ([*ok, "--arch", "resnet34"], 3, "resnet34"),
        "unknown --arch": ([*ok, "--arch", "resnet35"], 3, "resnet35"),
        "--arch of no file": ([*ok, "--arch", "no.py:net"], 2, "no file"),
        "no folder": ([digits.checkpoint, "--forget", folder / "gone"], 4, "No such file"),
        "empty folder": ([digits.checkpoint, "--forget", folder / "none"], 4, "empty"),
        "folder of no images": ([digits.checkpoint, "--forget", folder / "text"], 4, "PNG"),
        "one corrupt image": (
            [digits.checkpoint, "--forget", folder / "one_bad"], 4, "broken.png",
        ),
        "folder named to harm": (
            [digits.checkpoint, "--forget", folder / "no\x1b[31m\nrm -rf"], 4, "x1b",
        ),
        "label out of range": ([*ok, "--label", "10"], 2, "0 to 9"),
        "folder that contradicts": (
            [digits.checkpoint, "--forget", wrong], 4, "--label",
        ),
        "unknown flag": ([*ok, "--alhpa", "1"], 2, "--alhpa"),
        "negative weight": ([*ok, "--alpha", "-1"], 2, "--alpha"),
        "NaN weight": ([*ok, "--alpha", "nan"], 2, "--alpha"),
        "negative seed": ([*ok, "--seed", "-1"], 2, "--seed"),
        "seed of too many bits": ([*ok, "--seed", str(2**64)], 2, "--seed"),
        "layers that match nothing": ([*ok, "--layers", "layer9"], 2, "layer9"),
        "pattern that is none": ([*ok, "--layers", "("], 2, "compile"),
        "mean without std": ([*ok, "--mean", "0.5"], 2, "--std"),
        "mean of words": ([*ok, "--mean", "a,b", "--std", "1"], 2, "--mean"),
        "size zero": ([*ok, "--size", "0"], 2, "--size"),
        "channels it does not take": ([*ok, "--channels", "3"], 2, "--channels"),
        "images too small for it": ([given["squeezenet"], "--forget", forget], 4, "--size"),
        "answers that are no logits": (
            [*ok, "--arch", f"{folder / 'own.py'}:pair"], 3, "a tuple",
        ),
        "config of other classes": (
            [folder / "configured" / "m.safetensors", "--forget", forget], 3, "num_classes for 9",
        ),
        "CUDA where there is none": ([*ok, "--device", "cuda:9"], 1, "--device"),
        "no such device": ([*ok, "--device", "tpu"], 2, "--device"),
        "output exists": ([*ok, "-o", taken], 2, "--force"),
        "output is the Fisher file": ([*ok, "--fisher", taken, "-o", taken, "--force"], 2, "equal"),
        "output in no folder": ([*ok, "-o", folder / "no" / "x.safetensors"], 2, "no such folder"),
        "every class": (
            [digits.checkpoint, "--forget", digits.train], 4, "none would be left to keep",
        ),
        "output no safetensors": ([*ok, "-o", folder / "x.pt"], 2, "safetensors"),
        "Fisher file of nothing": ([*ok, "--fisher", folder / "f.safetensors"], 3, "No such file"),
    }  # fmt: skip


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may write to: for root, who writes everywhere, a read-only mount."""
    folder = tmp_path / "locked"
    folder.mkdir()
    if os.getuid():
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("root without the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_bad_input_is_one_line_an_exit_code_and_nothing_written(
    pbu: Run, digits: DemoFiles, tmp_path: Path
) -> None:
    """`pytest -s` prints the table: what was fed, exit code, line."""
    cases = bad_cases(digits, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    source = sha256(digits.checkpoint)
    rows: list[str] = []  # printed at the end: every call of pbu takes what was printed before it
    for name, (arguments, code, words) in cases.items():
        place = [] if "-o" in arguments else ["-o", tmp_path / "out.safetensors"]
        done = pbu("unlearn", "--fast", *arguments, *place, "--quiet")
        lines = [line for line in done.err.splitlines() if line.strip()]
        rows.append(f"{name:<28} {done.code}  {lines[-1] if lines else ''}")
        assert done.code == code, (name, done.err)
        assert words in done.err, (name, done.err)
        assert "Traceback" not in done.err, name
        assert "\x1b" not in done.err, name
        assert done.out == "", name
        assert len(lines) == 1, (name, done.err)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert sha256(digits.checkpoint) == source
    print(*rows, sep="\n")


@pytest.mark.parametrize("command", ["fisher", "unlearn", "evaluate"])
@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_checkpoint_that_is_a_folder_is_refused_by_name(
    pbu: Callable[..., Ran], digits: DemoFiles, command: str, path: str
) -> None:
    done = pbu(command, path, "--forget", digits.train / "8", "-q")
    assert done.code == 3
    assert "expected model.safetensors" in done.err


@pytest.mark.slow
def test_skip_bad_goes_on_and_counts(pbu: Run, digits: DemoFiles, tmp_path: Path) -> None:
    folder = tmp_path / "8"
    shutil.copytree(digits.train / "8", folder)
    (folder / "broken.png").write_bytes(b"\x89PNG")
    for command, flags in (("unlearn", FAST), ("fisher", ["--layers", "head"])):
        done = pbu(command, digits.checkpoint, "--forget", folder, "--skip-bad", "--json", *flags,
                   "-o", tmp_path / f"{command}.safetensors")  # fmt: skip
        assert "1 unreadable forget images were left out, first" in done.err
        assert "broken.png" in done.err
        assert json.loads(done.out)["skipped"] == 1


@pytest.mark.parametrize("lack", ["space", "permission"])
def test_a_folder_without_space_or_permission_is_found_before_any_work(
    pbu: Callable[..., Ran],
    digits: DemoFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lack: str,
) -> None:
    if lack == "space":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9000))
    else:  # not by the folder's mode: root writes everywhere
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    monkeypatch.setattr(sanitize, "unlearn", None)
    done = pbu("unlearn", "--fast", digits.checkpoint, "--forget", digits.train / "8", "-q",
               "-o", tmp_path / "x.safetensors")  # fmt: skip
    assert done.code == 1
    assert f"no {lack}" in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_old_output_as_it_was(
    digits: DemoFiles, tmp_path: Path
) -> None:
    """A limit on the size of files stands for a disk that fills up while the output is written."""
    output = tmp_path / "x.safetensors"
    output.write_bytes(b"precious")
    command = ["unlearn", "--fast", str(digits.checkpoint), "--forget", str(digits.train / "8"),
               "-q", "--steps", "1", "--force", "-o", str(output)]  # fmt: skip
    limit = 10_000_000
    assert digits.checkpoint.stat().st_size > limit
    done = subprocess.run(
        [sys.executable, "-m", "pbu_cli", *command], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "cannot write" in done.stderr
    assert output.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


@pytest.mark.slow
def test_two_runs_on_one_output_do_not_interleave(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    output = tmp_path / "o.safetensors"
    command = [
        "unlearn",
        "--fast",
        digits.checkpoint,
        "--forget",
        digits.train / "8",
        "-q",
        "-o",
        output,
    ]
    words = [str(word) for word in (*command, "--steps", "100000")]
    with subprocess.Popen([sys.executable, "-m", "pbu_cli", *words]) as first:
        try:
            while not list(tmp_path.iterdir()) and first.poll() is None:
                time.sleep(0.1)
            done = pbu(*command)
            assert done.code == 1
            assert "another run is about to write it" in done.err
            assert not output.exists()
        finally:
            first.terminate()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_memory_that_runs_out_is_one_line(digits: DemoFiles, tmp_path: Path) -> None:
    command = ["unlearn", "--fast", str(digits.checkpoint), "--forget", str(digits.train / "8"),
               "-q", "--size", "1024", "-o", str(tmp_path / "x.safetensors")]  # fmt: skip
    limit = 6 << 30  # of address space; the first layer alone answers with 35 GB
    done = subprocess.run(
        [sys.executable, "-m", "pbu_cli", *command], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: out of memory")  # foreseen or not, by the machine
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_read_only_folder_is_found_before_any_work(
    pbu: Callable[..., Ran], digits: DemoFiles, locked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanitize, "unlearn", None)
    done = pbu("unlearn", "--fast", digits.checkpoint, "--forget", digits.train / "8", "-q",
               "-o", locked / "x.safetensors")  # fmt: skip
    assert done.code == 1
    assert "no permission to write there" in done.err or "Read-only file system" in done.err
    assert not list(locked.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_so_and_leaves_nothing_behind(
    digits: DemoFiles, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    flags = ["--steps", "100000", "-o", str(tmp_path / "o.safetensors")]
    images = str(digits.train / "8")
    command = ["unlearn", "--fast", str(digits.checkpoint), "--forget", images, *flags]
    process = subprocess.Popen(
        [sys.executable, "-m", "pbu_cli", *command], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # ignored behind a shell's &
    )  # fmt: skip
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("needs"):  # the last line before the work
                break
        time.sleep(1)
        process.send_signal(number)
        assert process.wait(timeout=30) == code
    finally:
        process.kill()
    word = "interrupted" if number == signal.SIGINT else "terminated"
    whole = "every file is whole, or was not written"
    assert process.stderr.read() == f"error: {word}; {whole}\n"
    assert not list(tmp_path.iterdir())
