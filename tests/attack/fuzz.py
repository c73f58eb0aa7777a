"""Everything that pbu reads from strangers, fed with what strangers may come to think of.

    python -m tests.attack.fuzz [--minutes 5] [--seed 0] [--target NAME]

A prepared passes where it is read, or refused by a PbuError of one printable line. Any other exception
is a crash; ten seconds are a hang; more than 4 GB of address space is a crash too. What was found
once stands in tests/corpus, a file for each prepared, and is tried again by tests/test_fuzz.py.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from pbu_cli.data.decoding import common_size, decode
from pbu_cli.data.image_folders import list_groups, split_by_subfolder
from pbu_cli.errors import CheckpointError, PbuError
from pbu_cli.evaluation import compare as evaluation
from pbu_cli.fisher import fisher_file
from pbu_cli.io import checkpoint
from pbu_cli.io.strict_json import from_json
from pbu_cli.models.architecture_inference import infer
from pbu_cli.models.model_config import describe
from pbu_cli.records import statement as record
from pbu_cli.records.verifier import verify
from pbu_cli.settings import Preprocessing

PATIENCE = 10  # seconds a prepared may take
MEMORY = 4 << 30  # bytes of address space that all cases together may add
NAMES = st.sampled_from(
    ["a", "conv1.weight", "fc.weight", "fc.bias", "module.a", "x\0y", "\x1b[2J", "[red]a", "é\n"]
)
SIZES = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 12, 64, 512, -1, 2**31, 2**40, 2**62, 2**63, 2**64])


class Hang(BaseException):
    """Ten seconds are over."""


@dataclass(frozen=True)
class Target:
    """One door: what is fed through it, and how. `feed` gets bytes and an empty folder."""

    cases: st.SearchStrategy[bytes]
    feed: Callable[[bytes, Path], object]


def edited(*originals: bytes) -> st.SearchStrategy[bytes]:
    """A sound file with a few places overwritten, cut out, doubled or cut off."""
    edit = st.tuples(
        st.sampled_from(["overwrite", "insert", "delete", "double", "truncate"]),
        st.floats(0, 1),
        st.binary(max_size=12) | st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\x1b[31m", b'"', b"{"]),
        st.integers(1, 64),
    )

    def carry_out(original: bytes, edits: list[tuple[str, float, bytes, int]]) -> bytes:
        data = bytearray(original)
        for kind, where, content, count in edits:
            at = round(where * len(data))
            if kind == "overwrite":
                data[at : at + len(content)] = content
            elif kind == "insert":
                data[at:at] = content
            elif kind == "delete":
                del data[at : at + count]
            elif kind == "double":
                data[at:at] = data[at : at + count]
            else:
                del data[at:]
        return bytes(data)

    return st.builds(carry_out, st.sampled_from(originals), st.lists(edit, min_size=1, max_size=5))


def safetensors_files() -> st.SearchStrategy[bytes]:
    """Headers that lie, in every field of them."""
    field = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BOOL", "U64", "F4", "C64", "F8_E8M0", "X", 3]),
            "shape": st.lists(SIZES, max_size=4) | st.none() | st.just([1] * 70),
            "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | st.just([0]) | st.just("x"),
        }
    )
    metadata = st.dictionaries(st.text(max_size=4), st.text(max_size=8) | st.integers(), max_size=3)
    header = st.builds(
        lambda tensors, meta: {**tensors, **({"__metadata__": meta} if meta else {})},
        st.dictionaries(NAMES | st.text(max_size=5), field, max_size=3),
        metadata | st.none(),
    )

    def built(header: Any, data: bytes, lie: int) -> bytes:
        text = json.dumps(header).encode()
        return ((len(text) + lie) % 2**64).to_bytes(8, "little") + text + data

    lies = st.sampled_from([0, 0, 0, 1, -1, 8, 10**6, 2**62, 2**63])
    return st.builds(built, header, st.binary(max_size=64), lies)


def json_texts(keys: list[str]) -> st.SearchStrategy[bytes]:
    """JSON of any shape, with keys that mean something."""
    leaf = (
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | SIZES
        | st.sampled_from(["resnet18", "../../etc/passwd", "\x1b[2J", "[bold]x", "0" * 64])
    )  # fmt: skip
    value = st.recursive(
        leaf,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(keys) | st.text(max_size=4), inner, max_size=4)
        ),
        max_leaves=12,
    )
    whole = st.dictionaries(st.sampled_from(keys), value, max_size=6)
    deep = st.integers(1, 20_000).map(lambda n: b'{"mean":' + b"[" * n + b"]" * n + b"}")
    return whole.map(lambda found: json.dumps(found).encode()) | deep | st.binary(max_size=40)


@cache
def tensors() -> dict[str, torch.Tensor]:
    return {
        "conv1.weight": torch.ones(4, 3, 3, 3),
        "fc.weight": torch.ones(2, 4),
        "fc.bias": torch.ones(2),
    }


@cache
def pickles() -> tuple[bytes, ...]:
    """State dicts as torch writes them, old and new, and tensors that are odd."""
    found = []
    for content, new in (
        (tensors(), True), (tensors(), False), ({"state_dict": tensors(), "epoch": 1}, True),
        ({"a": torch.ones(1).expand(10**6)}, True), ({"a": torch.ones(2).to_sparse()}, True),
        ({"a": torch.ones(2, dtype=torch.complex64)}, True),
        ({"a": torch.empty(3, device="meta")}, True),
    ):  # fmt: skip
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=new)
        found.append(file.getvalue())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        with zipfile.ZipFile(io.BytesIO(found[0])) as sound:
            for name in sound.namelist():
                archive.writestr(name, sound.read(name))
        archive.writestr("archive/data/9", bytes(10**7))
    return (*found, packed.getvalue())


@cache
def pictures() -> tuple[bytes, ...]:
    found = []
    image = Image.effect_noise((9, 7), 40)
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF"):
        for mode in ("L", "RGB"):
            file = io.BytesIO()
            image.convert(mode).save(file, kind)
            found.append(file.getvalue())
    return (*found, b"GIF89a" + bytes(20), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")


@cache
def small_case() -> Any:
    """As much of a prepared as `read_fisher` looks at."""
    loaded = SimpleNamespace(
        checkpoint=checkpoint.Checkpoint(Path("m"), tensors(), "", {}), device=torch.device("cpu")
    )
    return SimpleNamespace(
        loaded=loaded,
        images=SimpleNamespace(pixels=torch.zeros(2, 3, 8, 8, dtype=torch.uint8)),
        image_labels=torch.tensor([1, 1]),
        preprocessing=Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3),
    )


@cache
def fisher_original() -> bytes:
    prepared = small_case()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "f.safetensors"
        fisher_file.write_fisher(path, prepared, tensors(), "empirical", 1, 0)
        return path.read_bytes()


@cache
def record_original() -> bytes:
    files = [
        {"role": role, "path": path, "sha256": "0" * 64, **more}
        for role, path, more in (
            ("output", "case.safetensors", {"tensors": "0" * 64}),
            ("config", "run.json", {}), ("input", "no\x1b", {}), ("input", "/dev/zero", {}),
        )
    ]  # fmt: skip
    forget = {"images": 1, "shape": [1, 8, 8], "hmac_sha256": "0" * 64, "key": "discarded"}
    return json.dumps(record.statement(files, forget_set=forget)).encode()


def feed_checkpoint(data: bytes, folder: Path, suffix: str = ".safetensors") -> None:
    path = folder / f"case{suffix}"
    path.write_bytes(data)
    read = checkpoint.read(path)
    describe(path, read.metadata)
    with suppress(CheckpointError):  # of no known architecture, as nearly all that come this far
        infer(read.shapes)


def feed_description(data: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(data)
    describe(folder / "m.safetensors", {})


def feed_metadata(data: bytes, folder: Path) -> None:
    text = data.decode(errors="replace")
    try:
        found = from_json(data)
    except ValueError:
        found = None
    inner = (
        {key: json.dumps(value) for key, value in found.items()} if isinstance(found, dict) else {}
    )
    describe(folder / "m.safetensors", {**inner, "pbu": text})


def feed_fisher(data: bytes, folder: Path) -> None:
    (folder / "f.safetensors").write_bytes(data)
    fisher_file.read_fisher(folder / "f.safetensors", small_case(), ["fc.weight"])


def feed_record(data: bytes, folder: Path) -> None:
    (folder / "run.json").write_bytes(data)
    (folder / "case.safetensors").write_bytes(save(tensors()))
    for finding in verify(folder / "run.json"):
        assert isinstance(finding.holds, bool | None)


def feed_image(data: bytes, folder: Path) -> None:
    (folder / "8").mkdir()
    (folder / "8" / "a.png").write_bytes(data)
    (folder / "8" / "b.jpg").write_bytes(pictures()[0])
    groups = list_groups([str(folder / "8")])
    common_size(groups, 1)
    decode(groups, channels=3, size=(8, 8), workers=1)


def feed_names(data: bytes, folder: Path) -> None:
    """Lines of the data as names below a folder: files, folders, links and FIFOs in turn."""
    for number, line in enumerate(data.split(b"\n")[:12]):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/8/" + line.replace(b"\0", b"")))
        if ".." in path.parts or len(line) > 200 or not path.is_relative_to(folder / "8"):
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(path):
                continue
            if number % 4 == 0:
                path.write_bytes(pictures()[number % 10])
            elif number % 4 == 1:
                path.symlink_to([path, path.parent, "/dev/zero", folder][number % 4 - 1])
            elif number % 4 == 2:
                os.mkfifo(path)
            else:
                path.mkdir()
        except OSError:
            continue
    groups = list_groups([str(folder / "8")])
    for group in groups:
        split_by_subfolder(group)
    decode(groups, channels=1, size=(4, 4), workers=1, skip_bad=True)


def feed_list(data: bytes, folder: Path) -> None:
    (folder / "sound.png").write_bytes(pictures()[0])
    previous = Path.cwd()
    os.chdir(folder)
    try:
        groups = list_groups(["-"], io.BytesIO(data))
        decode(groups, channels=1, size=(4, 4), workers=1)
    finally:
        os.chdir(previous)


def feed_csv(data: bytes, folder: Path) -> None:
    (folder / "list.csv").write_bytes(data)
    names = SimpleNamespace(
        network=SimpleNamespace(num_classes=3), description=SimpleNamespace(label_names=None)
    )
    groups = evaluation._from_list(folder / "list.csv", SimpleNamespace(loaded=names))
    decode([group for group, _ in groups], channels=1, size=(4, 4), workers=1)


LINES = st.lists(
    st.binary(max_size=20)
    | st.sampled_from([
        b"sound.png", b"a.png", b"/dev/zero.png", b"../../../etc/passwd", b"x\x1b.png", b"\xff.jpg",
        b"a/b/c.png", b"[red].png", b"n\xc3\xa9.tiff", b"sound.png,1", b"a.png,0", b'"a.png', b"\0",
        b"y" * 300 + b".png",
    ]),
    max_size=8,
).map(b"\n".join)  # fmt: skip

DESCRIBED = [
    "architecture",
    "num_classes",
    "label_names",
    "mean",
    "std",
    "input_size",
    "pretrained_cfg",
    "forgotten",
]
RECORDED = [
    "_type",
    "subject",
    "predicateType",
    "predicate",
    "files",
    "role",
    "path",
    "sha256",
    "version",
    "seal",
]


def targets() -> dict[str, Target]:
    sound = save(tensors(), {"format": "pt", "mean": "[0.5]"})
    return {
        "safetensors": Target(safetensors_files() | edited(sound), feed_checkpoint),
        "pickle": Target(edited(*pickles()) | st.sampled_from(pickles()) | st.binary(max_size=60),
                         lambda data, folder: feed_checkpoint(data, folder, ".pt")),
        "config": Target(json_texts(DESCRIBED), feed_description),
        "metadata": Target(json_texts(DESCRIBED), feed_metadata),
        "fisher": Target(edited(fisher_original()), feed_fisher),
        "record": Target(edited(record_original()) | json_texts(RECORDED), feed_record),
        "image": Target(edited(*pictures()) | st.binary(max_size=60), feed_image),
        "names": Target(LINES, feed_names),
        "list": Target(LINES | LINES.map(lambda text: text.replace(b"\n", b"\0")), feed_list),
        "csv": Target(LINES, feed_csv),
    }  # fmt: skip


def attempt(target: Target, data: bytes) -> str:
    """Feed one prepared; the exception's name where it was refused, else `read`. Raises on a fault."""

    def late(number: int, frame: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        with tempfile.TemporaryDirectory() as place:
            try:
                target.feed(data, Path(place))
            except PbuError as error:
                return _refused(error)
        return "read"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _refused(error: PbuError) -> str:
    line = str(error)
    assert line.isprintable(), ascii(line)
    assert len(line) < 2000, line
    return type(error).__name__


def fuzz(target: Target, *, cases: int, seed: int, seen: Counter[str]) -> None:
    """Try `cases` cases; raises what the first fault raised, on the smallest prepared that has it."""

    @hypothesis.seed(seed)
    @settings(
        max_examples=cases, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(target.cases)
    def check(data: bytes) -> None:
        seen[attempt(target, data)] += 1

    check()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=targets())
    given_ = parser.parse_args()
    chosen = {n: t for n, t in targets().items() if given_.target in (None, n)}
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    start, seed = time.monotonic(), given_.seed
    seen = {name: Counter[str]() for name in chosen}
    faults: Counter[str] = Counter()
    while time.monotonic() - start < 60 * given_.minutes:
        for name, target in chosen.items():
            try:
                fuzz(target, cases=200, seed=seed, seen=seen[name])
            except (Exception, Hang) as error:  # noqa: PERF203
                key = f"{name}: {type(error).__name__}: {str(error)[:200]!r}"
                faults[key] += 1
                if faults[key] == 1:
                    print("FAULT", key, *getattr(error, "__notes__", ()), flush=True)
        seed += 1
    minutes = (time.monotonic() - start) / 60
    for name, counts in seen.items():
        refused = ", ".join(f"{kind} {n:,}" for kind, n in counts.most_common())
        print(f"{name:<12} {counts.total():>8,} cases: {refused}")
    total = sum(counts.total() for counts in seen.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    hangs = sum(n for key, n in faults.items() if "Hang" in key)
    print(
        f"{total:,} cases in {minutes:.1f} min, crashes {faults.total() - hangs}, hangs {hangs},"
        f" peak memory {peak:.0f} MiB"
    )
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
