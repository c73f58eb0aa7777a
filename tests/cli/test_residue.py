"""What stays on the disk after a run: the outputs, and nothing of any forget image in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pbu_cli.benchmark.demo_digits import DemoFiles

pytestmark = pytest.mark.slow  # runs commands from start to end

WINDOW = 16  # bytes of an image that no file may hold in a row


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def traces(path: Path) -> list[bytes]:
    """What would give an image away: its name, its file's bytes, its pixels, as bytes or floats."""
    pixels = pixels_of(path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    rows = pixels.reshape(-1)
    scaled = (rows.astype(np.float32) / 255 - 0.5) / 0.5
    return [
        path.name.encode(),
        path.stem.encode(),
        whole[middle : middle + WINDOW],
        rows[: 2 * WINDOW].tobytes(),
        rows[-2 * WINDOW :].tobytes(),
        scaled[: 2 * WINDOW].tobytes(),
        scaled[-2 * WINDOW :].tobytes(),
    ]


@pytest.fixture
def forget(digits: DemoFiles, tmp_path: Path) -> Path:
    """The eights, under names that nothing else could hold."""
    folder = tmp_path / "images" / "8"
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted((digits.train / "8").iterdir())):
        shutil.copy(path, folder / f"person-{number:04d}-of-the-forget-set.png")
    return folder


def files_below(*folders: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_no_file_written_in_a_run_holds_a_name_or_a_byte_of_an_image(
    digits: DemoFiles, forget: Path, tmp_path: Path
) -> None:
    """Home, caches, temporary files and outputs of the three commands, searched through and
    through; `pytest -s` prints how much was searched."""
    places = {name: tmp_path / name for name in ("home", "tmp", "out")}
    for place in places.values():
        place.mkdir()
    out = places["out"]
    model = Path(shutil.copy(digits.checkpoint, out / "model.safetensors"))
    before = files_below(tmp_path)
    environment = {
        **os.environ, "HOME": str(places["home"]), "TMPDIR": str(places["tmp"]),
        "XDG_CACHE_HOME": str(places["home"] / "cache"), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    images = ["--forget", str(forget), "--label", "8"]
    fisher = str(out / "f.safetensors")
    for command in (
        ["fisher", str(model), *images, "-o", fisher, "--layers", "last"],
        ["unlearn", "--fast", str(model), *images, "--fisher", fisher,
         "-o", str(out / "o.safetensors"), "--record", str(out / "run.json"),
         "--record-key", str(out / "key"), "--steps", "10"],
        ["evaluate", str(out / "o.safetensors"), *images, "--original", str(model),
         "--record", str(out / "run.json")],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "pbu_cli", *command], env=environment, cwd=out,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode in (0, 5), done.stderr
        (out / f"{command[0]}.log").write_text(done.stdout + done.stderr)
    written = [path for path, time in files_below(tmp_path).items() if before.get(path) != time]
    names = {path.relative_to(tmp_path).as_posix() for path in written}
    assert names == {
        "out/f.safetensors", "out/o.safetensors", "out/run.json", "out/key", "out/fisher.log",
        "out/unlearn.log", "out/evaluate.log",
    }  # fmt: skip
    originals = sorted(forget.iterdir())
    sought = {trace for path in originals for trace in traces(path) if len(set(trace)) > 4}
    assert len(sought) > 4 * len(originals)
    size = 0
    for path in written:
        content = path.read_bytes()
        size += len(content)
        found = [trace for trace in sought if trace in content]
        assert not found, (path.name, found[:3])
    print(
        f"{len(written)} files, {size:,} bytes, searched for {len(sought)} traces of"
        f" {len(originals)} images: none found"
    )


def test_the_search_would_find_them(forget: Path) -> None:
    path = next(forget.iterdir())
    for content in (
        f"warning: {path.name}".encode(),
        b"x" + path.read_bytes() + b"y",
        pixels_of(path).tobytes(),
        ((pixels_of(path).astype(np.float32) / 255 - 0.5) / 0.5).tobytes(),
    ):
        assert any(trace in content for trace in traces(path))
