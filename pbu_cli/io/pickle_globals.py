"""What a PyTorch pickle may name, and what stands for it: descriptions, never the thing itself.

A tensor is described by its storage, shape and strides. Whatever else a checkpoint may hold, such
as the settings of its training, becomes an `Opaque` that only says what it is: no name is imported
and nothing that has one is called. A name that no settings need and that attacks use is refused
all the same, because its file is hostile.

Source: torch's own table of safe names, `torch/_weights_only_unpickler.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

KEYS = (str, int, float, bool, bytes, type(None))  # their hash takes no longer than they are
MAX_DIMENSIONS = 64
MAX_TENSORS = 50_000  # of a checkpoint; the largest classifiers have some thousands

STORAGES: dict[str, torch.dtype | None] = {  # None: a storage that counts bytes
    "UntypedStorage": None,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8,  # of quantized tensors, which are then refused by their name
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
}
HOSTILE_MODULES = {  # of Python, by the first part of a module's name
    "os", "posix", "nt", "posixpath", "ntpath", "subprocess", "sys", "runpy", "importlib", "imp",
    "pkgutil", "zipimport", "shutil", "socket", "ctypes", "_ctypes", "pickle", "_pickle", "cPickle",
    "marshal", "shelve", "webbrowser", "pty", "pdb", "bdb", "code", "codeop", "timeit", "cProfile",
    "doctest", "pydoc", "pip", "multiprocessing", "asyncio", "atexit", "io", "_io", "operator",
    "_operator", "_posixsubprocess", "tempfile", "urllib", "urllib2", "http", "httplib", "requests",
    "ftplib", "smtplib", "sqlite3",
}  # fmt: skip
HOSTILE_BUILTINS = {
    "eval", "exec", "execfile", "compile", "open", "file", "input", "raw_input", "__import__",
    "apply", "reload", "globals", "locals", "vars", "setattr", "delattr", "breakpoint",
}  # fmt: skip
HOSTILE_NAMES = {
    "torch.load", "torch.serialization.load", "torch.hub.load", "torch.jit.load", "numpy.load",
    "types.FunctionType", "types.CodeType", "functools.reduce", "logging.config.listen",
    "numpy.testing._private.utils.runstring",
}  # fmt: skip
BUILTINS = ("builtins", "__builtin__")
LOADER = "torch.storage._load_from_bytes"  # of tensors that pickle.dump wrote
MAX_NAME = 200  # bytes of a module's or a function's name
MAX_ATTRIBUTE = 600  # letters of a name with the names of its attributes


@dataclass(frozen=True)
class Name:
    """A global that the pickle names: a class or a function, in GLOBALS or not."""

    text: str


@dataclass(frozen=True, eq=False)
class Opaque:
    """A value that is no part of a state_dict, such as a device or an object of a class: only what
    it is."""

    what: str


@dataclass(frozen=True, eq=False)
class StorageRecord:
    """A storage as the pickle describes it. dtype: None where it counts bytes."""

    key: str
    dtype: torch.dtype | None
    numel: int


@dataclass(frozen=True, eq=False)
class TensorRecord:
    """A tensor as the pickle describes it; offset and strides count elements of `dtype`."""

    storage: StorageRecord
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class NoTorchFile(ValueError):
    """A pickle that another program than torch.save has written."""


class HostileName(ValueError):
    """A name in a pickle by which a file runs code when it is loaded, or hides a second pickle."""


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> TensorRecord:
    dtype = next((item for item in rest if isinstance(item, Name)), None)
    if not isinstance(storage, StorageRecord) or not _is_count(offset):
        raise ValueError("a tensor without a storage")
    of_tensor = DTYPES[dtype.text] if dtype and dtype.text in DTYPES else storage.dtype
    if of_tensor is None or (storage.dtype is not None and of_tensor != storage.dtype):
        raise ValueError("a tensor without a dtype")
    if not _are_counts(size) or not _are_counts(stride) or len(size) != len(stride):
        raise ValueError("a tensor with a false shape")
    return TensorRecord(storage, of_tensor, offset, tuple(size), tuple(stride))


def _first(value: Any, *rest: Any) -> Any:
    return value


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    allowed = [name for name, rebuild in GLOBALS.items() if rebuild in (_rebuild_tensor, _first)]
    known = isinstance(function, Name) and function.text in allowed
    if not known or not isinstance(arguments, tuple) or len(arguments) > MAX_DIMENSIONS:
        raise ValueError("a tensor of a type of its own")
    return GLOBALS[function.text](*arguments)


def _dictionary(items: Any = (), *rest: Any) -> dict[Any, Any]:
    if not isinstance(items, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in items
    ):
        raise ValueError("a dictionary of something else than pairs")
    return {checked_key(key): value for key, value in items}


def checked_key(key: Any) -> Any:
    """The key, if it is of a plain type, else an `Opaque` in its place, which equals no other key.

    Hashing a nested tuple may take for ever, and large whole numbers can be made to collide. Only
    settings have such keys; in a state dict they are refused by name.
    """
    if not isinstance(key, KEYS) or (isinstance(key, int) and abs(key) >= 1 << 60):
        return Opaque(f"a {type(key).__name__} as a key")
    return key


def is_hostile(module: str, name: str) -> bool:
    """Whether a file that names this runs code, or loads more than itself, once it is unpickled.

    >>> is_hostile("posix", "system"), is_hostile("argparse", "Namespace")
    (True, False)
    """
    parts = name.split(".")
    return (
        module.partition(".")[0] in HOSTILE_MODULES
        or (module in BUILTINS and parts[0] in HOSTILE_BUILTINS)
        or f"{module}.{name}" in HOSTILE_NAMES
        or (len(parts) > 1 and any(p in HOSTILE_MODULES or p.startswith("__") for p in parts))
    )


def checked_name(module: Any, name: Any) -> Name:
    """The global that a pickle names. Raises HostileName, or ValueError for no usual name."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name that is no text")
    if max(len(module), len(name)) > MAX_NAME:
        raise ValueError(f"a name of more than {MAX_NAME} bytes")
    if f"{module}.{name}" == LOADER:
        raise NoTorchFile("tensors as pickle.dump writes them")
    if is_hostile(module, name):
        raise HostileName(f"{module}.{name}")
    return Name(f"{module}.{name}")


def _attribute(owner: Any, name: Any) -> Name:
    """`getattr`, by which old protocols name a class inside a class and some enum members."""
    if not isinstance(owner, Name) or not isinstance(name, str):
        raise HostileName("builtins.getattr")
    if len(name) + len(owner.text) > MAX_ATTRIBUTE:
        raise ValueError("a name of too many letters")
    if is_hostile("", f"{owner.text}.{name}"):
        raise HostileName(f"{owner.text}.{name}")
    return Name(f"{owner.text}.{name}")


def _default_dictionary(factory: Any = None, *items: Any) -> dict[Any, Any]:
    return _dictionary(*items)


def _opaque(what: str) -> Callable[..., Opaque]:
    return lambda *arguments: Opaque(what)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _are_counts(values: Any) -> bool:
    few = isinstance(values, tuple | list) and len(values) <= MAX_DIMENSIONS
    return few and all(map(_is_count, values))


STORAGE_NAMES = {
    *(f"torch.{name}" for name in STORAGES),
    "torch.storage.UntypedStorage",
}
DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
GLOBALS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "collections.defaultdict": _default_dictionary,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _first,
    **dict.fromkeys(("torch.Tensor", "torch.nn.parameter.Parameter"), _opaque("tensor class")),
    **dict.fromkeys(("torch._utils._rebuild_sparse_tensor",), _opaque("sparse tensor")),
    **dict.fromkeys(("torch._utils._rebuild_nested_tensor",), _opaque("nested tensor")),
    **dict.fromkeys(("torch._utils._rebuild_qtensor",), _opaque("quantized tensor")),
    **dict.fromkeys(("torch._utils._rebuild_meta_tensor_no_storage",), _opaque("meta tensor")),
    **dict.fromkeys(("torch.device",), _opaque("device")),
    **{
        f"{builtins}.{name}": _opaque(name)
        for builtins in BUILTINS
        for name in ("set", "complex", "bytearray")
    },
    **dict.fromkeys((f"{builtins}.getattr" for builtins in BUILTINS), _attribute),
    **dict.fromkeys(STORAGE_NAMES, _opaque("storage class")),
    **dict.fromkeys(DTYPES, _opaque("dtype")),
    "torch.serialization._get_layout": _opaque("layout"),
}
