"""Checkpoints and Fisher files on disk: read them and compute their digests.

The files are not trusted: both formats are parsed in Python, names and metadata are data, never
code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from pbu_cli.errors import CheckpointError, is_out_of_memory, printable
from pbu_cli.io.foreign.file_kinds import (
    PICKLE,
    ZIP,
    adapter_kind,
    folder_kind,
    foreign_kind,
    is_safetensors,
    shard_kind,
)
from pbu_cli.io.foreign.prefixes import common_prefix, left_over
from pbu_cli.io.foreign.tensor_checks import all_finite, check_tensors
from pbu_cli.io.regular_files import read_buffer
from pbu_cli.io.safetensors_format import DTYPES, Fingerprint, Tensors, digest, parse_safetensors
from pbu_cli.io.torch_pickle import unpickle
from pbu_cli.runtime.device import memory
from pbu_cli.settings import SAFETENSORS


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read from disk.

    stored: the tensors under the names and in the dtypes of the file. prefix: what the stored
    names have before the module's own names, such as `module.` of a DataParallel checkpoint or
    `_orig_mod.` of a compiled one. sha256: of the bytes that the tensors were read from.
    state_dict: the key of the state dict in the file, empty where the file holds nothing else.
    other_state_dicts: the keys of those that were not read. renamed: the module's name of each
    tensor that its library renames on loading, by its name without the prefix. unused: stored names
    of tensors that the library's own loader passes over. files: of a folder, the names of the
    tensors in each of its files.
    """

    path: Path
    stored: Tensors
    prefix: str
    metadata: dict[str, str]
    sha256: str = ""
    state_dict: str = ""
    other_state_dicts: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def tensors(self) -> Tensors:
        """The tensors under the module's names: those that are not left over, without the prefix
        and renamed."""
        return {name: self.stored[stored] for stored, name in self.module_names().items()}

    @cached_property
    def left_over(self) -> tuple[str, ...]:
        """The stored names that no network takes: those without the prefix, which are a wrapper's,
        and the unused ones."""
        without = set(left_over(list(self.stored), self.prefix))
        return tuple(name for name in self.stored if name in without or name in self.unused)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes by the module's names, which the architecture is inferred from."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the file as it was read; the file on disk may have changed since."""
        key = self.state_dict if self.other_state_dicts else None
        return Fingerprint(self.sha256, digest(self.stored), key)

    def stored_names(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """Tensors under the module's names -> the same tensors under the stored names, and those
        that are left over as they are."""
        rest = {name: self.stored[name] for name in self.left_over}
        stored = {name: stored for stored, name in self.module_names().items()}
        return {**{stored[name]: tensor for name, tensor in tensors.items()}, **rest}

    def module_names(self) -> dict[str, str]:
        """The module's name of every tensor that is not left over, by its stored name."""
        rest = set(self.left_over)
        return {stored: self._module_name(stored) for stored in self.stored if stored not in rest}

    def under(
        self,
        prefix: str,
        renamed: Mapping[str, str] | None = None,
        unused: frozenset[str] = frozenset(),
    ) -> Checkpoint:
        """The same checkpoint with another prefix, which begins as its own does, with the names
        that a library gives to some tensors, and without those that it passes over."""
        if prefix == self.prefix and not renamed and not unused:
            return self
        return replace(self, prefix=prefix, renamed=renamed or {}, unused=unused)

    def _module_name(self, stored: str) -> str:
        name = stored.removeprefix(self.prefix)
        return self.renamed.get(name, name)


def read(path: Path, state_dict: str | None = None, *, shard: bool = False) -> Checkpoint:
    """Read a checkpoint, a safetensors or a PyTorch file, as tensors only; its suffix says nothing.

    shard: whether the file may be one of several, which are read together. state_dict: the key of
    the state dict to read, where a PyTorch file holds several. A file with one ignores it. Raises
    CheckpointError where the file is missing, empty, truncated or of another format, where it holds
    no state dict or several, a NaN or an infinity, and InvalidUsage where `state_dict` is the key
    of none.
    """
    content = _read_content(path)
    if not shard and (kind := shard_kind(path)):
        raise CheckpointError(f"{printable(path)}: is {kind}")
    found = _parse(path, content, state_dict)
    if adapter := adapter_kind(path, found.stored):
        raise CheckpointError(f"{printable(path)}: is {adapter}")
    stored = found.stored
    broken = [n for n, t in stored.items() if t.is_floating_point() and not all_finite(t)]
    if broken:
        raise CheckpointError(
            f"{printable(path)}: NaN or infinity in {len(broken)} of {len(stored)} tensors, first"
            f" {printable(broken[0])}; expected finite weights: restore an earlier checkpoint"
        )
    return with_prefix(replace(found, sha256=hashlib.sha256(content).hexdigest()))


def with_prefix(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint, with the prefix that its stored names have in common."""
    shapes = {name: tensor.shape for name, tensor in checkpoint.stored.items()}
    return replace(checkpoint, prefix=common_prefix(shapes))


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a file, names and dtypes as stored, and its metadata; NaN is not an error."""
    found = _parse(path, _read_content(path))
    return found.stored, found.metadata


def fingerprint(path: Path, state_dict: str | None = None) -> Fingerprint:
    """The fingerprint of a checkpoint or Fisher file on disk. Raises as `read` does."""
    content = _read_content(path)
    found = _parse(path, content, state_dict)
    return replace(found, sha256=hashlib.sha256(content).hexdigest()).fingerprint


def _read_content(path: Path) -> bytearray:
    """The file's bytes. At most half of the memory, because its tensors need as much again."""
    try:
        content = read_buffer(path, memory() / 2)
    except OSError as error:
        if path.is_dir():
            kind = folder_kind(path) or "a folder; pass the checkpoint in it"
            raise CheckpointError(
                f"{printable(path)}: cannot read the checkpoint: it is {kind}"
            ) from None
        raise CheckpointError(
            f"{printable(path)}: cannot read the checkpoint: {error.strerror}; expected a"
            " safetensors or PyTorch file"
        ) from None
    if not content:
        raise CheckpointError(f"{printable(path)}: empty file (0 bytes); expected a checkpoint")
    return content


def _parse(path: Path, content: bytearray, state_dict: str | None = None) -> Checkpoint:
    """The tensors, in the format that the first bytes are of; the prefix is not looked for."""
    if is_safetensors(content):
        found = _parse_safetensors(path, content)
    elif kind := foreign_kind(path, content):
        raise CheckpointError(f"{printable(path)}: is {kind}")
    elif content.startswith((PICKLE, ZIP)):
        read = unpickle(path, content, state_dict)
        found = Checkpoint(path, read.tensors, "", {}, "", read.key, read.others)
    elif path.suffix.lower() == SAFETENSORS:
        found = _parse_safetensors(path, content)  # which says what is wrong
    else:
        raise CheckpointError(
            f"{printable(path)}: cannot be read as a safetensors or PyTorch file: it begins with"
            f" {content[:8].hex(' ')}; it is of another format, truncated or damaged: save"
            " model.state_dict(), or copy the file again"
        )
    check_tensors(path, found.stored, len(content), DTYPES)
    return found


def _parse_safetensors(path: Path, content: bytearray) -> Checkpoint:
    try:
        tensors, metadata = parse_safetensors(content)
    except (ValueError, RuntimeError) as error:  # torch's own errors too
        if is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{printable(path)}: not a safetensors file ({printable(reason)}); the file is"
            " truncated or damaged: copy it again"
        ) from None
    return Checkpoint(path, tensors, "", metadata)
