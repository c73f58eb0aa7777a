"""What a network of timm computes beyond its tensors, as texts that can be compared.

Two networks with the same tensors and the same texts are one network. The converse does not hold:
an attribute may differ that no output depends on.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from types import FunctionType

from torch import Tensor, nn

from tests.measure.timm_shapes import CLASSES, network

# In eval mode these modules return their input.
SILENT = {"Identity", "Dropout", "Dropout2d", "DropPath", "PatchDropout", "DropBlock2d"}
# Attributes that no output in eval mode depends on.
UNUSED = {"training", "pretrained_cfg", "default_cfg", "feature_info", "drop_rate", "p"}
UNUSED |= {"drop_prob", "drop_path_rate", "scale_by_keep", "inplace", "grad_checkpointing"}
UNUSED |= {"proj_drop_rate", "attn_drop_rate", "dropout_rate", "drop", "attn_drop_prob"}
UNUSED |= {"init_values"}  # of a layer's scale, before training
SHOWN = 3
DEEPEST = 4  # objects in objects

Behaviour = dict[str, dict[str, str]]  # by the path of a module: its attributes, and its "class"


@functools.lru_cache(maxsize=8)
def behaviour(name: str, size: int | None) -> Behaviour:
    """The attributes and computed constants of all modules that do anything in eval mode."""
    options = {} if size is None else {"img_size": size}
    model = network(name, num_classes=CLASSES, **options)
    found = {}
    for path, module in model.named_modules():
        title = type(module).__name__
        if title not in SILENT:
            values = {k: v for k, v in sorted(vars(module).items()) if k[0] != "_"}
            values |= dict(_constants(module))
            texts = {key: _text(value) for key, value in values.items() if key not in UNUSED}
            found[path] = {"class": title, **texts}
    return found


def difference(one: str, other: str, size: int | None) -> str:
    """The first things in which two networks differ, as `attribute value / value`."""
    a, b = behaviour(one, size), behaviour(other, size)
    found: dict[str, str] = {}  # each thing once, whatever the number of blocks that have it
    for path in [*a, *(path for path in b if path not in a)]:
        x, y = a.get(path, {"class": "nothing"}), b.get(path, {"class": "nothing"})
        if x["class"] != y["class"]:
            found.setdefault(f"{x['class']} / {y['class']}", "")
            continue
        for key in {**x, **y}:
            if x.get(key) != y.get(key):
                values = f"{x.get(key, 'nothing')[:40]} / {y.get(key, 'nothing')[:40]}"
                found.setdefault(f"{x['class']}.{key}", f" {values}")
    shown = [thing + values for thing, values in found.items()][:SHOWN]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(shown) + more


def _constants(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """The buffers that a checkpoint does not hold."""
    stored = module.state_dict(keep_vars=True).keys()
    buffers = module.named_buffers(recurse=False)
    return [(name, buffer) for name, buffer in buffers if name not in stored]


def _text(value: object, depth: int = 0) -> str:
    """A value without anything that differs from run to run, such as addresses."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, Tensor):
        content = b"" if value.is_meta else value.detach().contiguous().numpy().tobytes()
        return f"{tuple(value.shape)}{hashlib.sha256(content).hexdigest()[:8]}"
    if depth == DEEPEST or isinstance(value, nn.Module):
        return type(value).__qualname__
    if isinstance(value, functools.partial):
        return "".join(_text(part, depth + 1) for part in (value.func, value.args, value.keywords))
    if isinstance(value, dict):
        pairs = (f"{key}:{_text(item, depth + 1)}" for key, item in value.items())
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "(" + ",".join(_text(item, depth + 1) for item in value) + ")"
    if isinstance(value, FunctionType):
        return value.__qualname__ + hashlib.sha256(value.__code__.co_code).hexdigest()[:4]
    if hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return type(value).__qualname__ + _text(getattr(value, "__dict__", None), depth + 1)
