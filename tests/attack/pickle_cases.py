"""Pickles made up opcode by opcode, in both containers of torch.save, for the target `opcodes`."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

from hypothesis import strategies as st

from pbu_cli.io.torch_pickle import MAGIC, PROTOCOL, unpickle

NAMES = [
    b"collections\nOrderedDict\n", b"torch._utils\n_rebuild_tensor_v2\n", b"torch\nFloatStorage\n",
    b"torch._utils\n_rebuild_parameter\n", b"torch._utils\n_rebuild_tensor_v3\n",
    b"torch\nfloat32\n", b"torch.storage\nUntypedStorage\n", b"torch\nSize\n", b"torch\ndevice\n",
    b"torch._tensor\n_rebuild_from_type_v2\n", b"torch.nn.parameter\nParameter\n",
    b"builtins\nset\n", b"os\nsystem\n", b"torch.storage\n_load_from_bytes\n", b"\n\n",
    b"torch._utils\n_rebuild_sparse_tensor\n", b"collections\nCounter\n",
    b"collections\ndefaultdict\n", b"argparse\nNamespace\n", b"builtins\ngetattr\n", b"a\nB.C\n",
]  # fmt: skip


def text(content: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(content)) + content


STORAGE = (
    b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + b"K\x04tQ"
)
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00K\x02K\x02\x86K\x02K\x01\x86\x89"
    b"ccollections\nOrderedDict\n)RtR"
)
FRAGMENTS = [
    *(b"c" + name for name in NAMES), *(bytes([code]) for code in b"(N}])tueasbRQ.i0dl"),
    b"\x91", b"\x92", b"1", b"\x8d\x01" + bytes(7) + b"a",
    b"\x80\x02", b"\x85", b"\x86", b"\x87", b"\x88", b"\x89", b"\x81", b"\x8f", b"\x90", b"\x93",
    b"\x94", b"K\x00", b"K\x01", b"K\x04", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f",
    b"M\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8a\xff", b"G" + b"\x7f\xf8" + bytes(6),
    b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"r\xff\xff\xff\xff", b"j\xff\xff\xff\xff",
    text(b"a"), text(b"0"), text(b"storage"), text(b"cpu"), text(b"state_dict"),
    text(b"\xed\xa0\x80"), b"X\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f", b"C\x02ab", STORAGE, TENSOR,
    TENSOR[:-2], b"}(" + text(b"a") + TENSOR + b"u", b"q\x00h\x00\x86" * 60,
]  # fmt: skip


def opcodes() -> st.SearchStrategy[bytes]:
    """Sequences of fragments; half of them are wrapped so that they are the values of a dict."""
    body = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=4), max_size=25).map(b"".join)
    wrapped = body.map(lambda inner: b"\x80\x02}(" + text(b"a") + inner + b"u.")
    return body.map(lambda inner: b"\x80\x02" + inner + b".") | wrapped | body


def archive(content: bytes) -> bytearray:
    """The pickle in a zip file, with a storage of four numbers."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
        packed.writestr("archive/data.pkl", content)
        packed.writestr("archive/data/0", bytes(16))
    return bytearray(file.getvalue())


def stream(content: bytes) -> bytearray:
    """The pickle in the format of before torch 1.6, with the same storage."""
    first = [pickle.dumps(value, 2) for value in (MAGIC, PROTOCOL, {"little_endian": True})]
    keys = pickle.dumps(["0"], 2) + struct.pack("<q", 4) + bytes(16)
    return bytearray(b"".join(first) + content + keys)


def feed_opcodes(data: bytes, folder: Path) -> None:
    """Both containers; the second one only where the first one is read."""
    found = unpickle(Path("case.pt"), archive(data)).tensors
    again = unpickle(Path("case.pt"), stream(data)).tensors
    for name, tensor in found.items():
        assert tensor.sum() == again[name].sum()
