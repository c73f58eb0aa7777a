"""The targets of `fuzz.py`: each is one way by which a stranger's file reaches pbu."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import strategies as st
from safetensors.torch import save

from pbu_cli.data import labelled_list
from pbu_cli.errors import CheckpointError
from pbu_cli.fisher import fisher_file
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import list_groups, split_by_subfolder
from pbu_cli.images.image_sizes import usual_size
from pbu_cli.io import checkpoint
from pbu_cli.io.strict_json import from_json
from pbu_cli.models.model_config import describe
from pbu_cli.models.sources.torchvision_inference import infer
from pbu_cli.records.verifier import verify
from tests.attack.cases import (
    DESCRIBED,
    LINES,
    RECORDED,
    edited,
    fisher_original,
    fisher_source,
    json_texts,
    pickles,
    pictures,
    record_original,
    safetensors_files,
    tensors,
)
from tests.attack.cell_cases import cells, feed_cell
from tests.attack.pickle_cases import feed_opcodes, opcodes


@dataclass(frozen=True)
class Target:
    """cases: the files to make up. feed: hands one of them to pbu, given its bytes and an empty
    folder."""

    cases: st.SearchStrategy[bytes]
    feed: Callable[[bytes, Path], object]


def feed_checkpoint(data: bytes, folder: Path, suffix: str = ".safetensors") -> None:
    path = folder / f"case{suffix}"
    path.write_bytes(data)
    read = checkpoint.read(path)
    describe(path, read.metadata)
    with suppress(CheckpointError):  # nearly all have no known architecture
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
    shapes = {"fc.weight": tuple(tensors()["fc.weight"].shape)}
    fisher_file.read_fisher(folder / "f.safetensors", fisher_source(), shapes, torch.device("cpu"))


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
    usual_size(groups, 1)
    decode(groups, channels=3, size=(8, 8), workers=1)


def feed_names(data: bytes, folder: Path) -> None:
    """Each line is a name below a folder: of a file, a link, a FIFO and a folder in turn."""
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
                ends = (path, path.parent, Path("/dev/zero"), folder)
                path.symlink_to(ends[number // 4 % 4])
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
    (folder / "valid.png").write_bytes(pictures()[0])
    previous = Path.cwd()
    os.chdir(folder)
    try:
        groups = list_groups(["-"], io.BytesIO(data))
        decode(groups, channels=1, size=(4, 4), workers=1)
    finally:
        os.chdir(previous)


def feed_csv(data: bytes, folder: Path) -> None:
    (folder / "list.csv").write_bytes(data)
    (folder / "valid.png").write_bytes(pictures()[0])
    found = labelled_list.read_labelled_list(
        folder / "list.csv", ["cat", "dog", "7"], 3, skip_missing=False
    )
    decode(found.groups, channels=1, size=(4, 4), workers=1)


def targets() -> dict[str, Target]:
    valid = save(tensors(), {"format": "pt", "mean": "[0.5]"})
    return {
        "safetensors": Target(safetensors_files() | edited(valid), feed_checkpoint),
        "pickle": Target(edited(*pickles()) | st.sampled_from(pickles()) | st.binary(max_size=60),
                         lambda data, folder: feed_checkpoint(data, folder, ".pt")),
        "opcodes": Target(opcodes(), feed_opcodes),
        "config": Target(json_texts(DESCRIBED), feed_description),
        "metadata": Target(json_texts(DESCRIBED), feed_metadata),
        "fisher": Target(edited(fisher_original()), feed_fisher),
        "record": Target(edited(record_original()) | json_texts(RECORDED), feed_record),
        "cell": Target(cells(), feed_cell),
        "image": Target(edited(*pictures()) | st.binary(max_size=60), feed_image),
        "names": Target(LINES, feed_names),
        "list": Target(LINES | LINES.map(lambda text: text.replace(b"\n", b"\0")), feed_list),
        "csv": Target(LINES, feed_csv),
    }  # fmt: skip
