"""Each hostile class of input through the whole command: one harmless line, a code, and nothing
run, written or waited for. `pytest -s` prints the table."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from pbu_cli.benchmark.demo_digits import DemoFiles
from tests.conftest import Ran

Build = Callable[[DemoFiles, Path], list[object]]


def header(fields: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


SAFETENSORS = {
    "header length that lies": header({"a": entry([1], 0, 4)}, bytes(4), length=2**60),
    "overlapping offsets": header({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, bytes(8)),
    "offsets out of range": header({"a": entry([4], 0, 16)}, bytes(4)),
    "a tensor twice": header(
        b'{"a":' + json.dumps(entry([1], 0, 4)).encode()
        + b',"a":' + json.dumps(entry([2], 0, 8)).encode() + b"}", bytes(8),
    ),
    "an enormous shape": header({"a": entry([2**40, 2**40], 0, 4)}, bytes(4)),
    "zero-size dimensions": header({"fc.weight": entry([0, 2**62], 0, 0)}),
    "a negative dimension": header({"a": entry([-1], 0, 4)}, bytes(4)),
    "deep JSON in the header": header(b'{"a":' + b"[" * 100_000),
    "a header that is not UTF-8": header(b'{"\xff":' + b"1}"),
    "a name with escapes and markup": save({"\x1b[2J\n[bold red]x\0": torch.ones(1)}),
}  # fmt: skip


class Attack:
    def __reduce__(self) -> Any:
        return os.system, ("touch PWNED",)


def packed() -> bytes:
    """A .pt whose archive unpacks to a thousand times itself."""
    plain, file = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.zeros(10**7)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


PICKLES: dict[str, Any] = {
    "code in a pickle": {"a": Attack()},
    "a tensor that only claims its size": {"a": torch.zeros(1).expand(10**12)},
    "a tensor without numbers": {"a": torch.empty(10**9, device="meta")},
}

CONFIGS = {
    "deep JSON in config.json": b'{"mean":' + b"[" * 100_000,
    "config.json that is not UTF-8": b'{"architecture": "\xff"}',
    "a key twice in config.json": b'{"num_classes": 10, "num_classes": 9}',
    "code for an architecture": b'{"architecture": "os:system"}',
    "endless classes": b'{"num_classes": 1e999}',
    "escapes in config.json": b'{"architecture": "\\u001b[2J"}',
}


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 black pixels, in half a megabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        sum_ = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", sum_)

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes(7501) * 60_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def images_with(name: str, put: Callable[[Path, DemoFiles], object]) -> Build:
    def build(digits: DemoFiles, folder: Path) -> list[object]:
        eights = folder / "8"
        eights.mkdir()
        for path in sorted((digits.train / "8").iterdir())[:5]:
            shutil.copy(path, eights)
        put(eights / name, digits)
        return [digits.checkpoint, "--forget", eights]

    return build


def some_eight(digits: DemoFiles) -> Path:
    return min((digits.train / "8").iterdir())


IMAGES: dict[str, Build] = {
    "an image that is a FIFO by a link": images_with(
        "a.png", lambda p, d: (os.mkfifo(p.with_suffix(".fifo")), p.symlink_to("a.fifo"))
    ),
    "an image that is a device": images_with("a.png", lambda p, d: p.symlink_to("/dev/zero")),
    "a link that loops": images_with("a.png", lambda p, d: p.symlink_to("a.png")),
    "an image that has vanished": images_with("a.png", lambda p, d: p.symlink_to("gone.png")),
    "a decompression bomb": images_with("a.png", lambda p, d: p.write_bytes(bomb())),
    "a truncated image": images_with(
        "a.png", lambda p, d: p.write_bytes(some_eight(d).read_bytes()[:50])
    ),
    "text named .png": images_with("a.png", lambda p, d: p.write_text("hello")),
    "PostScript named .png": images_with(
        "a.png", lambda p, d: p.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    ),
    "a name with newline, escape and markup": images_with(
        "x\n\x1b]0;title\x07[bold red]y.png", lambda p, d: p.write_text("hello")
    ),
    "a name that is not UTF-8": images_with("\udcff.png", lambda p, d: p.write_text("hello")),
}


def checkpoint_of(content: bytes, name: str = "m.safetensors") -> Build:
    def build(digits: DemoFiles, folder: Path) -> list[object]:
        (folder / name).write_bytes(content)
        return [folder / name, "--forget", digits.train / "8"]

    return build


def pickle_of(content: Any) -> Build:
    def build(digits: DemoFiles, folder: Path) -> list[object]:
        torch.save(content, folder / "m.pt")
        return [folder / "m.pt", "--forget", digits.train / "8"]

    return build


def config_of(content: bytes) -> Build:
    def build(digits: DemoFiles, folder: Path) -> list[object]:
        (folder / "config.json").write_bytes(content)
        os.link(digits.checkpoint, folder / "m.safetensors")
        return [folder / "m.safetensors", "--forget", digits.train / "8"]

    return build


def special(make: Callable[[Path], object], name: str = "m.safetensors") -> Build:
    def build(digits: DemoFiles, folder: Path) -> list[object]:
        if name != "m.safetensors":
            os.link(digits.checkpoint, folder / "m.safetensors")
        make(folder / name)
        return [folder / "m.safetensors", "--forget", digits.train / "8"]

    return build


def metadata_of(**metadata: str) -> Build:
    def build(digits: DemoFiles, folder: Path) -> list[object]:
        save_file(load_file(digits.checkpoint), folder / "m.safetensors", metadata)
        return [folder / "m.safetensors", "--forget", digits.train / "8"]

    return build


CASES: dict[str, tuple[int, Build]] = {
    **{name: (3, checkpoint_of(content)) for name, content in SAFETENSORS.items()},
    **{name: (3, pickle_of(content)) for name, content in PICKLES.items()},
    "a .pt that unpacks to much": (3, checkpoint_of(packed(), "m.pt")),
    "a checkpoint that is a FIFO": (3, special(os.mkfifo)),
    "a checkpoint that is a device": (3, special(lambda p: p.symlink_to("/dev/zero"))),
    "a checkpoint that is a loop": (3, special(lambda p: p.symlink_to(p.name))),
    "a config.json that is a FIFO": (3, special(os.mkfifo, "config.json")),
    **{name: (3, config_of(content)) for name, content in CONFIGS.items()},
    "metadata that name code": (3, metadata_of(architecture="os:system")),
    "metadata with a size beyond bounds": (3, metadata_of(input_size="[3, 1e9, 1e9]")),
    "metadata of a class that is none": (3, metadata_of(pbu='{"forgotten": [10]}')),
    "metadata of a class below the first": (3, metadata_of(pbu='{"forgotten": [-1]}')),
    "metadata with a std of nothing": (3, metadata_of(mean="[0.5]", std="[0]")),
    **{name: (4, build) for name, build in IMAGES.items()},
}


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_class_is_one_harmless_line_and_a_code(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, monkeypatch: Any, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, build = CASES[name]
    arguments = build(digits, tmp_path)
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = pbu("unlearn", "--fast", *arguments, "-o", tmp_path / "out.safetensors", "--quiet")
    print(f"{name:<40} {done.code}  {done.err}", end="")
    assert done.code == code, done.err
    assert len(done.err.splitlines()) == 1
    assert done.err.rstrip("\n").isprintable()
    assert "unexpected error" not in done.err
    assert done.out == ""
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before
