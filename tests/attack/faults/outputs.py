"""Faults of what is written: its order, its readers, its names, and signals meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

from tests.attack.faults.fault import CHECKPOINTS, Fault, Place

MNIST = CHECKPOINTS / "mnist_resnet34_fp16.safetensors"
SETTINGS = ("--mean", "0.1307", "--std", "0.3081", "--fast", "--steps", "2", "--layers", "head")
UNLEARN = ("unlearn", "net.safetensors", "--forget", "test/8", "--label", "8", *SETTINGS, "-q")
NETWORK = """
import torch, torchvision
def net():
    network = torchvision.models.resnet34(num_classes=10)
    network.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return network
"""
HOLDS_THE_LOCK = """
import os, signal, threading, time
def net():
    nested = ()
    for _ in range(60):
        nested = (nested, nested)
    if os.fork() == 0:
        time.sleep(1)
        os.kill(os.getppid(), signal.%s)
        os._exit(0)
    hash(nested)
"""
STOPPED = """
import os, signal, pathlib
replace = pathlib.Path.replace
def stopped(self, target):
    found = replace(self, target)
    if os.path.exists("out.safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)
    return found
pathlib.Path.replace = stopped
"""
SLOW = """
import fcntl, os, time
path = ".run.json.lock"
lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(12)
os.unlink(path)
"""


def network(place: Place) -> None:
    folder = place.folder / "test" / "8"
    folder.mkdir(parents=True)
    for path in sorted((place.data / "test" / "8").iterdir())[:40]:
        shutil.copy(path, folder)
    shutil.copy(MNIST, place.folder / "net.safetensors")
    (place.folder / "net.safetensors").chmod(0o644)
    (place.folder / "net.py").write_text(NETWORK)


def private(place: Place) -> None:
    network(place)
    (place.folder / "net.safetensors").chmod(0o600)


def output_is_private(place: Place) -> None:
    assert (place.folder / "out.safetensors").stat().st_mode & 0o077 == 0


def marked(place: Place) -> None:
    network(place)
    os.setxattr(place.folder / "net.safetensors", "user.origin", b"a lab")
    os.chown(place.folder / "net.safetensors", 12345, 12345)


def still_marked(place: Place) -> None:
    path = place.folder / "net.safetensors"
    assert "user.origin" in os.listxattr(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12345)


def stopped(place: Place) -> None:
    """A run that is killed as soon as its output has its name."""
    network(place)
    (place.folder / "net.py").write_text(NETWORK + STOPPED)


def recorded(place: Place) -> None:
    network(place)
    place.pbu(*UNLEARN, "-o", "out.safetensors", "--record", "run.json")


def with_nan(place: Place) -> None:
    recorded(place)
    path = place.folder / "run.json"
    text = path.read_text()
    assert ": null" in text
    path.write_text(text.replace(": null", ": NaN", 1))


def names_a_password_file(place: Place) -> None:
    from pbu_cli.io.strict_json import to_json
    from pbu_cli.records.statement import statement

    entry = {"role": "config", "path": "/etc/passwd", "sha256": "0" * 64}
    (place.folder / "run.json").write_text(to_json(statement([entry])))


def record_there(place: Place) -> None:
    assert (place.folder / "run.json").exists()
    assert (place.folder / "out.safetensors").exists()


def no_folder_in_output(place: Place) -> None:
    for name in ("out.safetensors", "run.json"):
        assert b"/proc/self/cwd" not in (place.folder / name).read_bytes()


def configured(place: Place) -> None:
    network(place)
    (place.folder / "config.json").write_text('{"architecture": "resnet34", "num_classes": 10}')


def config_is_whole(place: Place) -> None:
    found = json.loads((place.folder / "config.json").read_text())
    assert found["architecture"] == "resnet34"


def locked_record(place: Place) -> None:
    """Another run holds the record's lock for some seconds more than this one works."""
    recorded(place)
    holder = subprocess.Popen(
        [sys.executable, "-c", SLOW], cwd=place.folder, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"


def evaluated_once(place: Place) -> None:
    record = json.loads((place.folder / "run.json").read_text())
    assert len(record["predicate"]["evaluations"]) == 1


def key_is_whole(place: Place) -> None:
    assert not (place.folder / "out.safetensors").exists()


def keeping_the_lock(name: str) -> Fault:
    """A network whose making keeps the interpreter's lock; a signal arrives after a second."""

    def prepare(place: Place) -> None:
        network(place)
        (place.folder / "net.py").write_text(HOLDS_THE_LOCK % name)

    code = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}[name]
    return Fault(
        5, f"{name} while native code keeps the lock",
        (*UNLEARN, "--arch", "net.py:net", "-o", "out.safetensors"), code, "every file is whole",
        prepare,
    )  # fmt: skip


OUT = ("-o", "out.safetensors")
RECORD = ("--record", "run.json")
FAULTS = [
    *map(keeping_the_lock, ("SIGTERM", "SIGINT", "SIGHUP")),
    Fault(
        12, "the output of a private checkpoint is public", (*UNLEARN, *OUT), 5, "", private,
        output_is_private,
    ),
    Fault(
        12, "in place, owner and attributes are lost",
        (*UNLEARN, "-o", "net.safetensors", "--force"), 5, "", marked, still_marked,
    ),
    Fault(
        12, "an absolute --arch stands in the output",
        (*UNLEARN, "--arch", "/proc/self/cwd/net.py:net", *OUT, *RECORD), 5, "", network,
        no_folder_in_output,
    ),
    Fault(
        12, "verify reads /etc/passwd", ("verify", "run.json"), 5,
        "outside the record's folder and not read", names_a_password_file,
    ),
    Fault(
        12, "the key on the lock's own name",
        (*UNLEARN, *OUT, *RECORD, "--record-key", ".run.json.lock"), 2, "the name of the lock",
        network, key_is_whole,
    ),
    Fault(
        12, "a record with NaN for null keeps its seal", ("verify", "run.json"), 3,
        "NaN is no JSON", with_nan,
    ),
    Fault(
        13, "killed when the output appears: no record",
        (*UNLEARN, "--arch", "net.py:net", *OUT, *RECORD), -9, "", stopped, record_there,
    ),
    Fault(
        14, "--record config.json overwrites the network's config",
        (*UNLEARN, *OUT, "--record", "config.json", "--force"), 2, "is the config.json of",
        configured, config_is_whole,
    ),
    Fault(
        14, "an evaluation is refused while another one writes the record",
        ("evaluate", "out.safetensors", "--forget", "test/8", "--label", "8", *SETTINGS[:4],
         *RECORD, "-q"), 0, "", locked_record, evaluated_once,
    ),
]  # fmt: skip
