"""Made-up files for `fuzz.py`: edits of valid files, and files that are wrong from the start."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from PIL import Image

from pbu_cli.fisher import fisher_file
from pbu_cli.io.safetensors_format import digest
from pbu_cli.records import statement as record
from pbu_cli.settings import Preprocessing

NAMES = st.sampled_from(
    ["a", "conv1.weight", "fc.weight", "fc.bias", "module.a", "x\0y", "\x1b[2J", "[red]a", "é\n"]
)
SIZES = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 12, 64, 512, -1, 2**31, 2**40, 2**62, 2**63, 2**64])
LINES = st.lists(
    st.binary(max_size=20)
    | st.sampled_from([
        b"valid.png", b"a.png", b"/dev/zero.png", b"../../../etc/passwd", b"x\x1b.png", b"\xff.jpg",
        b"a/b/c.png", b"[red].png", b"n\xc3\xa9.tiff", b"valid.png,1", b"a.png,0", b'"a.png', b"\0",
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


def edited(*originals: bytes) -> st.SearchStrategy[bytes]:
    """A valid file in which a few places were overwritten, inserted, deleted or doubled, or which
    was truncated."""
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
    """Safetensors files whose headers may be wrong in every field."""
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
    """JSON of any shape, with `keys` that pbu looks for."""
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
    """State dicts in torch's old and new formats, and odd tensors."""
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
        with zipfile.ZipFile(io.BytesIO(found[0])) as valid:
            for name in valid.namelist():
                archive.writestr(name, valid.read(name))
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
def fisher_source() -> fisher_file.FisherSource:
    return fisher_file.FisherSource(
        digest(tensors()),
        Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.tensor([1, 1]),
    )


@cache
def fisher_original() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "f.safetensors"
        fisher_file.write_fisher(
            path, tensors(), fisher_source(), estimator="empirical", draws=1, seed=0
        )
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
