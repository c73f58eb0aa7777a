"""Interpret the pickle of a PyTorch file without building anything that it names.

The machine knows the opcodes that torch.save writes and no others. It builds plain numbers,
strings, lists, tuples and dictionaries, and the descriptions of `pickle_globals`. Nothing is
imported and nothing that the file names is called, so nothing has to be loaded in a process of its
own. An object of any other class is one `Opaque`, whatever is then done to it.
A pickle costs a pass over its bytes: its opcodes are counted, and nothing here follows its
values down.

Source of the format: Python's `pickletools`, torch's `torch/serialization.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from pbu_cli.errors import printable
from pbu_cli.io.pickle_globals import (
    GLOBALS,
    MAX_NAME,
    STORAGE_NAMES,
    STORAGES,
    HostileName,
    Name,
    Opaque,
    StorageRecord,
    TensorRecord,
    checked_key,
    checked_name,
)

MAX_OPCODES = 1_000_000  # a tensor takes about 30, and a classifier has at most some thousands
MAX_BYTES = 1 << 25  # of all pickles of a file
MAX_INTEGER = 32  # bytes of a whole number; torch's magic number has 10
MAX_ARGUMENTS = 16  # of a call


class Machine:
    """Reads pickles one after the other from `data`, beginning at `position`.

    storages: every storage that was described so far, by its key.
    """

    def __init__(self, data: memoryview, position: int = 0) -> None:
        self.data, self.position = data, position
        self.storages: dict[str, StorageRecord] = {}
        self.opcodes, self.bytes = 0, 0

    def read(self) -> Any:
        """The value of the next pickle.

        Raises ValueError for a pickle that torch.save does not write, and HostileName for one that
        would run code if it were loaded.
        """
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        while True:
            self._count(1)
            code = self._take(1)[0]
            if code == STOP:
                value = self._pop()
                if self.stack or self.marks:
                    raise ValueError("the pickle leaves values behind")
                return value
            handler = HANDLERS.get(code)
            if handler is None:
                raise ValueError(f"the pickle opcode {code:#04x}, which torch.save does not write")
            handler(self)

    def _count(self, opcodes: int) -> None:
        self.opcodes += opcodes
        if self.opcodes > MAX_OPCODES:
            raise ValueError(f"more than {MAX_OPCODES:,} pickle opcodes")

    def _take(self, count: int) -> memoryview:
        found = self.data[self.position : self.position + count]
        if len(found) < count:
            raise ValueError("the pickle ends early")
        self.bytes += count
        if self.bytes > MAX_BYTES:
            raise ValueError(f"pickles of more than {MAX_BYTES:,} bytes")
        self.position += count
        return found

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _line(self) -> str:
        end = bytes(self.data[self.position : self.position + MAX_NAME]).find(b"\n")
        if end < 0:
            raise ValueError(f"a name of more than {MAX_NAME} bytes")
        return bytes(self._take(end + 1)[:-1]).decode("utf-8")

    def _text(self, layout: str) -> str:
        return bytes(self._take(self._number(layout))).decode("utf-8", "surrogatepass")

    def _integer(self) -> int:
        length = self._number("<B")
        if length > MAX_INTEGER:
            raise ValueError(f"a whole number of {length} bytes")
        return int.from_bytes(self._take(length), "little", signed=True)

    def _pop(self) -> Any:
        if not self.stack or (self.marks and len(self.stack) <= self.marks[-1]):
            raise ValueError("a pickle opcode without its operand")
        return self.stack.pop()

    def _to_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("a pickle opcode without its mark")
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def _recall(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError("a reference to nothing")
        self.stack.append(self.memo[index])

    def _remember(self, index: int) -> None:
        value = self._pop()
        self.stack.append(value)
        self.memo[index] = value

    def _extend(self, items: list[Any]) -> None:
        target = self._pop()
        self.stack.append(target)
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise ValueError("items for something that is no list")

    def _set(self, items: list[Any]) -> None:
        target = self._pop()
        self.stack.append(target)
        if isinstance(target, Opaque):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("keys for something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def _build(self) -> None:
        self._pop()  # attributes, such as the versions of a state_dict's modules
        target = self._pop()
        if not isinstance(target, dict | TensorRecord | Opaque):
            raise ValueError(f"attributes of a {type(target).__name__}")
        self.stack.append(target)

    def _global(self, module: Any, name: Any) -> None:
        self.stack.append(checked_name(module, name))

    def _reduce(self) -> None:
        arguments, name = self._pop(), self._pop()
        if isinstance(name, Opaque):
            raise HostileName(f"a call of {name.what}")
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is no function")
        if name.text not in GLOBALS:
            self.stack.append(Opaque(name.text))
            return
        if len(arguments) > MAX_ARGUMENTS:
            raise ValueError(f"a call with {len(arguments)} arguments")
        self._count(sum(len(item) for item in arguments if isinstance(item, list | tuple)))
        self.stack.append(GLOBALS[name.text](*arguments))

    def _reduce_with_keywords(self) -> None:
        self._pop()
        self._reduce()

    def _storage(self) -> None:
        described = self._pop()
        if not isinstance(described, tuple) or len(described) > MAX_ARGUMENTS:
            raise ValueError("a storage that torch.save would not write")
        match described:
            case ("storage", Name(text), str(key), str(), int(numel), *view) if (
                text in STORAGE_NAMES and numel >= 0 and view in ([], [None])
            ):
                found = StorageRecord(key, STORAGES[text.rpartition(".")[2]], int(numel))
            case _:
                raise ValueError("a storage that torch.save would not write")
        known = self.storages.setdefault(key, found)
        if (known.dtype, known.numel) != (found.dtype, found.numel):
            raise ValueError(f"two descriptions of the storage {printable(key, 40)}")
        self.stack.append(known)


STOP = ord(".")
HANDLERS: dict[int, Callable[[Machine], Any]] = {
    0x80: lambda m: m._take(1),  # PROTO
    0x95: lambda m: m._take(8),  # FRAME
    ord("("): lambda m: m.marks.append(len(m.stack)),
    ord("N"): lambda m: m.stack.append(None),
    0x88: lambda m: m.stack.append(True),
    0x89: lambda m: m.stack.append(False),
    ord("J"): lambda m: m.stack.append(m._number("<i")),
    ord("K"): lambda m: m.stack.append(m._number("<B")),
    ord("M"): lambda m: m.stack.append(m._number("<H")),
    0x8A: lambda m: m.stack.append(m._integer()),
    ord("G"): lambda m: m.stack.append(m._number(">d")),
    ord("X"): lambda m: m.stack.append(m._text("<I")),
    0x8D: lambda m: m.stack.append(m._text("<Q")),
    0x8C: lambda m: m.stack.append(m._text("<B")),
    ord("U"): lambda m: m.stack.append(m._text("<B")),  # a string of Python 2
    ord("T"): lambda m: m.stack.append(m._text("<I")),
    ord("C"): lambda m: m.stack.append(bytes(m._take(m._number("<B")))),
    ord("B"): lambda m: m.stack.append(bytes(m._take(m._number("<I")))),
    0x8E: lambda m: m.stack.append(bytes(m._take(m._number("<Q")))),
    0x96: lambda m: m.stack.append(bytes(m._take(m._number("<Q")))),  # BYTEARRAY8
    ord("}"): lambda m: m.stack.append({}),
    ord("]"): lambda m: m.stack.append([]),
    ord(")"): lambda m: m.stack.append(()),
    0x8F: lambda m: m.stack.append(Opaque("set")),
    0x91: lambda m: m.stack.append(Opaque(f"frozenset of {len(m._to_mark())}")),
    ord("t"): lambda m: m.stack.append(tuple(m._to_mark())),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord("q"): lambda m: m._remember(m._number("<B")),
    ord("r"): lambda m: m._remember(m._number("<I")),
    0x94: lambda m: m._remember(len(m.memo)),
    ord("h"): lambda m: m._recall(m._number("<B")),
    ord("j"): lambda m: m._recall(m._number("<I")),
    ord("a"): lambda m: m._extend([m._pop()]),
    ord("e"): lambda m: m._extend(m._to_mark()),
    0x90: lambda m: m._extend(m._to_mark()),  # ADDITEMS, of a set
    ord("s"): lambda m: m._set([m._pop(), m._pop()][::-1]),
    ord("u"): lambda m: m._set(m._to_mark()),
    ord("0"): lambda m: m._pop(),
    ord("1"): lambda m: m._to_mark(),  # POP_MARK
    ord("b"): Machine._build,
    ord("c"): lambda m: m._global(m._line(), m._line()),
    0x93: lambda m: m._global(*[m._pop(), m._pop()][::-1]),
    ord("R"): Machine._reduce,
    0x81: Machine._reduce,  # NEWOBJ
    0x92: Machine._reduce_with_keywords,  # NEWOBJ_EX
    ord("Q"): Machine._storage,
}
