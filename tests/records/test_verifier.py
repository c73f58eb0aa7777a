"""`pbu verify`: what of a record holds, and what does not."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.io.strict_json import to_json
from pbu_cli.records import statement as record
from tests.conftest import Ran
from tests.records.conftest import edited


def findings(done: Ran) -> dict[str, bool | None]:
    found: dict[str, bool | None] = {}
    for entry in json.loads(done.out)["findings"]:
        found[entry["what"]] = entry["holds"] if found.get(entry["what"], True) else False
    return found


def test_a_true_record_holds_even_where_all_of_it_moves(
    pbu: Callable[..., Ran], folder: Path, digits: DemoFiles
) -> None:
    given = ["--record-key", folder / "key", "--forget", digits.train / "8"]
    done = pbu("verify", folder / "run.json", *given, "--json")
    assert done.code == 0, done.err
    assert set(findings(done).values()) == {True}
    assert len(findings(done)) == 4
    moved = folder.rename(folder.with_name("elsewhere"))
    assert pbu("verify", moved / "run.json").code == 0


def test_images_are_turned_as_the_run_turned_them(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    """The record says so, and it says nothing where the run had no such flag."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "8").mkdir()
    for path in sorted((digits.train / "8").iterdir())[:20]:
        Image.open(path).save(tmp_path / "8" / path.name, exif=exif)
    forget = ["--forget", tmp_path / "8"]
    key = ["--record-key", tmp_path / "key"]
    run = ["unlearn", digits.checkpoint, *forget, "--label", "8", "--fast", "--steps", "1"]
    for flags in ([], ["--no-exif-rotation"]):
        out = ["-o", tmp_path / "out.safetensors", "--record", tmp_path / "run.json", "--force"]
        (tmp_path / "key").unlink(missing_ok=True)
        assert pbu(*run, *flags, *out, *key).code in (0, 5)
        run_facts = json.loads((tmp_path / "run.json").read_text())["predicate"]
        assert ("exif_rotation" in run_facts["forget_set"]) == bool(flags)
        assert ("exif_rotation" in run_facts["run"]["settings"]["wanted"]) == bool(flags)
        assert pbu("verify", tmp_path / "run.json", "--files-anywhere", *key, *forget).code == 0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("output byte", "output out.safetensors"),
        ("output metadata", "output out.safetensors"),
        ("output gone", "output out.safetensors"),
        ("input", "input model.safetensors"),
        ("figure", "record"),
        ("one image less", "forget set"),
        ("other images", "forget set"),
        ("other key", "forget set"),
    ],
)
def test_what_does_not_hold_is_named_and_exits_with_5(
    pbu: Callable[..., Ran], folder: Path, digits: DemoFiles, change: str, what: str
) -> None:
    output, key, forget = folder / "out.safetensors", folder / "key", digits.train / "8"
    data = bytearray(output.read_bytes())
    if change == "output byte":
        data[-1000] ^= 1
        output.write_bytes(data)
    elif change == "output metadata":
        save_file(load_file(output), output, {})
    elif change == "output gone":
        output.unlink()
    elif change == "input":
        shutil.copy(output, folder / "model.safetensors")
    elif change == "figure":
        edited(folder, lambda predicate: predicate["run"]["result"].update(a_df=0.01))
    elif change == "one image less":
        forget = shutil.copytree(forget, folder / "8")
        next(forget.iterdir()).unlink()
    elif change == "other images":
        forget = shutil.copytree(forget, folder / "8")
        shutil.copy(next((digits.train / "3").iterdir()), next(forget.iterdir()))
    elif change == "other key":
        key.write_text("0" * 64)
    done = pbu("verify", folder / "run.json", "--record-key", key, "--forget", forget, "--json")
    assert done.code == 5
    assert {name for name, holds in findings(done).items() if holds is False} == {what}
    assert what in done.err
    if change == "output metadata":
        tensors = [f for f in json.loads(done.out)["findings"] if "of the tensors" in f["detail"]]
        assert all(finding["holds"] for finding in tensors)


def test_an_output_over_its_input_is_verified_as_such(
    pbu: Callable[..., Ran], folder: Path, digits: DemoFiles
) -> None:
    model = folder / "model.safetensors"
    before = model.read_bytes()
    command = ["unlearn", "--fast", model, "--forget", digits.train / "8", "-o", model, "-q",
               "--steps", "1", "--record", folder / "in_place.json"]  # fmt: skip
    assert pbu(*command).code == 2
    assert model.read_bytes() == before
    assert pbu(*command, "--force").code in (0, 5)
    assert model.read_bytes() != before
    done = pbu("verify", folder / "in_place.json", "--json")
    assert done.code == 0, done.err
    assert findings(done)["input model.safetensors"] is None


@pytest.mark.parametrize(
    "name",
    ["/dev/zero", "/proc/kcore", "/proc/kmsg", "fifo", "loop", ".", "nul\0", "\ud800", "x" * 300,
     "\x1b[2J\n[bold]", "../../../../../../etc/hostname"],
)  # fmt: skip
def test_a_record_may_name_anything_and_nothing_happens(
    pbu: Callable[..., Ran], tmp_path: Path, name: Any
) -> None:
    import os

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for tensors in ({}, {"tensors": "0" * 64}):
        entry = {"role": "\x1b[31mconfig\n", "path": name, "sha256": "0" * 64, **tensors}
        (tmp_path / "run.json").write_text(to_json(record.statement([entry])))
        done = pbu("verify", tmp_path / "run.json")
        assert done.code == 5
        assert len(done.err.splitlines()) == 1
        assert "\x1b" not in done.out + done.err


def test_a_check_of_the_forget_set_that_was_asked_for_is_made_or_fails(
    pbu: Callable[..., Ran], folder: Path, digits: DemoFiles
) -> None:
    key, images = ["--record-key", folder / "key"], ["--forget", digits.train / "8"]
    for half in (key, images):
        done = pbu("verify", folder / "run.json", *half)
        assert done.code == 2
        assert "checked with both" in done.err
    alone = folder / "alone.json"
    assert pbu("evaluate", folder / "out.safetensors", "--forget", digits.test / "8", "-q",
               "--record", alone).code == 0  # fmt: skip
    done = pbu("verify", alone, *key, *images)
    assert done.code == 5
    assert "has none" in done.err


def test_paths_of_the_forget_set_may_come_on_stdin(
    pbu: Callable[..., Ran], folder: Path, digits: DemoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = "\n".join(str(path) for path in sorted((digits.train / "8").iterdir()))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
    done = pbu("verify", folder / "run.json", "--record-key", folder / "key", "--forget", "-")
    assert done.code == 0, done.err


@pytest.mark.parametrize("how", ["..", "absolute", "link"])
def test_files_outside_the_folder_of_the_record_are_not_read(
    pbu: Callable[..., Ran], tmp_path: Path, how: str
) -> None:
    """As root, a record could otherwise make verify read anything and tell parts of its digest."""
    secret, inside = tmp_path / "secret", tmp_path / "inside"
    secret.write_text("x")
    inside.mkdir()
    name = {"..": "../secret", "absolute": str(secret), "link": "link"}[how]
    (inside / "link").symlink_to(secret)
    (inside / "run.json").write_text(
        to_json(record.statement([{"role": "config", "path": name, "sha256": "0" * 64}]))
    )
    done = pbu("verify", inside / "run.json")
    assert done.code == 5
    assert "not read: pass --files-anywhere" in done.err
    read = pbu("verify", inside / "run.json", "--files-anywhere")
    assert read.code == 5
    assert "another one than the recorded 0000000000000000" in read.err
    assert hashlib.sha256(b"x").hexdigest()[:6] not in read.out + read.err


def test_nan_is_no_json_and_no_null(pbu: Callable[..., Ran], tmp_path: Path) -> None:
    entry = {"role": "config", "path": "x", "sha256": "0" * 64, "size": None}
    text = to_json(record.statement([entry]))
    (tmp_path / "run.json").write_text(text.replace("null", "NaN", 1))
    done = pbu("verify", tmp_path / "run.json")
    assert done.code == 3
    assert "NaN is no JSON" in done.err
