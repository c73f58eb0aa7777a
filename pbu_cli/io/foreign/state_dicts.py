"""Which of the dictionaries in a PyTorch file is the state dict of the network.

Training programs save it beside much else, under a key of their own, and often a second time as a
moving average. Two state dicts of one network hold the class to forget twice. None of them is
chosen in silence, because the output holds only one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pbu_cli.errors import InvalidUsage, printable
from pbu_cli.io.foreign.prefixes import common_prefix
from pbu_cli.io.pickle_globals import MAX_TENSORS, Name, Opaque, TensorRecord

# Keys under which programs save the network. A state dict under another key is read only where it
# is the only one.
WRAPPERS = (
    "state_dict", "model_state_dict", "model", "module", "net", "weights", "params", "model_state",
    "ema", "network", "state_dict_ema", "model_ema", "teacher", "student",
)  # fmt: skip
OPTIMIZER = "optim"  # keys that begin so hold tensors of the shapes of weights, which are none
MAX_DEPTH = 4  # dictionaries in dictionaries
MAX_KEY = 100  # letters of a key that can be a part of --state-dict
SHOWN = 8  # state dicts in a message
MIXED = 0.5  # from this share of tensors on a dictionary under a known key is a broken state dict
TWINS = 0.5  # two state dicts with this share of names and shapes in common are of one network

Records = dict[str, TensorRecord]


class NotAStateDict(ValueError):
    """A PyTorch file that can be read and holds something else."""


@dataclass(frozen=True)
class FoundStateDict:
    """A state dict of the file. key: where it is, keys joined by dots, empty where it is all of
    the file. others: the keys of the other state dicts in the file."""

    key: str
    records: Records
    others: tuple[str, ...] = ()


def find_state_dict(content: Any, wanted: str | None = None) -> FoundStateDict:
    """The network's state dict in the content of a PyTorch file.

    wanted: the value of --state-dict. A file that is one state dict needs none and ignores it.
    Raises NotAStateDict where there is none, or where several may be meant and `wanted` is None,
    and InvalidUsage where none is under `wanted`.
    """
    found = {} if _share_of_tensors(content) == 1 else _candidates(content)
    if not found:
        return FoundStateDict("", _records(_unwrapped(content)))
    if wanted is not None and wanted not in found:
        raise InvalidUsage(
            f"--state-dict {printable(wanted, 80)}: the file has no state dict under this key;"
            f" expected one of: {_shown(found)}"
        )
    known = [key for key in found if _is_known(key)] or list(found)
    key = known[0] if wanted is None else wanted
    others = tuple(other for other in found if other != key)
    twins = any(_are_twins(found[key], found[other]) for other in others)
    if wanted is None and (len(known) > 1 or twins):
        raise NotAStateDict(
            f"holds {len(found)} state dicts: {_shown(found)}; expected one, because the output"
            " holds one: pass --state-dict KEY with one of these keys"
        )
    return FoundStateDict(key, _records(found[key]), others)


def _candidates(content: Any) -> dict[str, dict[Any, Any]]:
    """The dictionaries in the content that may be state dicts, by their keys joined by dots.

    Each dictionary is looked at once, because a pickle may hold it in many places, itself too.
    """
    found: dict[str, dict[Any, Any]] = {}
    seen, level = {id(content)}, {"": content} if isinstance(content, dict) else {}
    for _ in range(MAX_DEPTH):
        below: dict[str, dict[Any, Any]] = {}
        for place, outer in level.items():
            for name, value in outer.items():
                if not isinstance(name, str) or len(name) > MAX_KEY or name.startswith(OPTIMIZER):
                    continue
                if not isinstance(value, dict) or id(value) in seen:
                    continue
                seen.add(id(value))
                key = f"{place}.{name}" if place else name
                (found if _may_be_state_dict(key, value) else below)[key] = value
        level = below
    return found


def _may_be_state_dict(key: str, value: dict[Any, Any]) -> bool:
    """Whether nearly all values are tensors; only under a known key need there be no weights."""
    share = _share_of_tensors(value)
    if _is_known(key):
        return share >= MIXED
    return share == 1 and any(len(tensor.size) > 1 for tensor in value.values())


def _share_of_tensors(value: Any) -> float:
    if not isinstance(value, dict) or not value:
        return 0.0
    return sum(isinstance(item, TensorRecord) for item in value.values()) / len(value)


def _is_known(key: str) -> bool:
    return all(part in WRAPPERS for part in key.split("."))


def _are_twins(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    """Whether the two are of one network, whatever prefix a wrapper has put before the names."""
    first, second = _sizes(one), _sizes(other)
    same = sum(second.get(name) == size for name, size in first.items())
    return same >= max(1.0, TWINS * min(len(first), len(second)))


def _sizes(state_dict: dict[Any, Any]) -> dict[str, tuple[int, ...]]:
    sizes = {
        name: value.size
        for name, value in state_dict.items()
        if isinstance(name, str) and isinstance(value, TensorRecord)
    }
    prefix = common_prefix(sizes)
    return {name.removeprefix(prefix): size for name, size in sizes.items()}


def _shown(found: dict[str, dict[Any, Any]]) -> str:
    keys = [f"{printable(key, 80)} ({len(value)} tensors)" for key, value in found.items()]
    return ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")


def _unwrapped(content: Any) -> Any:
    """What is under the usual keys, which is no state dict: the error says what it is."""
    for _ in range(MAX_DEPTH):
        key = next((k for k in WRAPPERS if isinstance(content, dict) and k in content), None)
        if key is None or not isinstance(content[key], dict | Opaque):
            break
        content = content[key]
    return content


def _records(content: Any) -> Records:
    """The content as a state dict. Raises NotAStateDict that says what it is instead."""
    if isinstance(content, Opaque | Name):
        raise NotAStateDict(
            f"holds an object of {_what(content)}, which only its own code can read, and pbu runs"
            " no code from a checkpoint; expected a state_dict: load the file where that code is,"
            " and torch.save(model.state_dict(), ...)"
        )
    if not isinstance(content, dict):
        raise NotAStateDict(f"holds a {_what(content)}; expected a state_dict")
    if len(content) > MAX_TENSORS:
        raise NotAStateDict(
            f"{len(content):,} entries, more than any classifier has; expected a state_dict"
        )
    odd = next((name for name, value in content.items() if _is_odd_tensor(value)), None)
    if odd is not None:
        raise NotAStateDict(
            f"{printable(odd)} is not a plain tensor of real numbers but a"
            f" {_what(content[odd])}; expected the state_dict of a classifier: save"
            " model.state_dict()"
        )
    records = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, TensorRecord)
    }
    if not records or len(records) < len(content):
        other = next((key for key in content if key not in records), "nothing")
        why = "" if not content else f", which is no tensor but {_what(content[other])}"
        why = why if isinstance(other, str) else ", which is no name"
        shown = _what(other) if isinstance(other, Opaque) else printable(other)
        raise NotAStateDict(
            f"expected a state_dict (names to tensors), got {shown} among"
            f" {len(content)} entries{why}; save model.state_dict()"
        )
    return records


def _is_odd_tensor(value: Any) -> bool:
    return isinstance(value, Opaque) and value.what.endswith(" tensor")


def _what(value: Any) -> str:
    """The kind of a value in a few words."""
    if isinstance(value, Opaque | Name):
        return printable(value.what if isinstance(value, Opaque) else value.text, 100)
    return "tensor" if isinstance(value, TensorRecord) else type(value).__name__
