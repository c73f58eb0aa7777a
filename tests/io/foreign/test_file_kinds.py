"""Files of other programs: each is read by its content, or refused in one line that helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from pbu_cli.errors import PbuError
from pbu_cli.io.checkpoint import read
from pbu_cli.io.foreign.file_kinds import adapter_kind, foreign_kind, is_safetensors, shard_kind
from tests.attack.foreign_files import FILES, STATE, Foreign

SLOW = ("TorchScript", "torch.export")


@pytest.mark.parametrize(
    "foreign",
    [
        pytest.param(foreign, marks=[pytest.mark.slow] if foreign.what in SLOW else [])
        for foreign in FILES
    ],
    ids=lambda foreign: foreign.what,
)
def test_a_file_is_read_or_refused_by_its_content(foreign: Foreign, tmp_path: Path) -> None:
    path = tmp_path / foreign.name
    foreign.make(path)
    key = foreign.flags[1] if foreign.flags else None
    if foreign.code == 0:
        found = read(path, key)
        assert found.tensors.keys() == STATE.keys()
        assert found.stored_names(found.tensors).keys() == found.stored.keys()
        return
    with pytest.raises(PbuError) as caught:
        read(path, key)
    message = str(caught.value)
    assert caught.value.exit_code == foreign.code
    assert foreign.says in message
    assert message.isprintable()
    assert foreign.name in message or foreign.code == 2


def test_a_header_of_a_length_like_the_start_of_a_pickle_is_that_of_safetensors() -> None:
    content = bytearray((0x280).to_bytes(8, "little") + b"{" + bytes(700))
    assert content.startswith(b"\x80\x02")
    assert is_safetensors(content)


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04", b"PK\x03\x04" + b"PK\x05\x06" * 9, b"PK\x03\x04" + b"PK\x05\x06" + b"\xff" * 18,
     b"PK\x03\x04" + b"PK\x06\x06" + b"\xff" * 72 + b"PK\x05\x06" + b"\xff" * 18,
     b"\x08\x08\x12\xff", b"{" * 10_000, b"[" * 200_000, b"<", b"\x80", b"GGU"],
)  # fmt: skip
def test_the_bytes_of_a_stranger_break_nothing(content: bytes) -> None:
    foreign_kind(Path("m.pt"), bytearray(content))


def test_a_shard_is_known_by_its_name_alone() -> None:
    kind = shard_kind(Path("folder/model-00002-of-00003.safetensors"))
    assert kind is not None
    assert "shard 2 of 3" in kind
    assert "folder folder with all of model-*-of-00003.safetensors" in kind
    assert shard_kind(Path("model-00001-of-00001.safetensors")) is None
    assert shard_kind(Path("model-1-of-2.pt")) is None


def test_a_network_with_lora_layers_is_no_adapter() -> None:
    names = ["fc.weight", "fc.lora_A", "fc.lora_B"]
    assert adapter_kind(Path("m.pt"), names) is None
    assert adapter_kind(Path("adapter_model.bin"), names) is not None
    assert adapter_kind(Path("m.pt"), names[1:]) is not None
