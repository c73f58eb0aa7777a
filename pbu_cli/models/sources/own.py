"""The user's own module, from the function that `--arch` names."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from pbu_cli.errors import CheckpointError, InvalidUsage, printable
from pbu_cli.io.checkpoint import Checkpoint
from pbu_cli.models.hooks import print_to_stderr
from pbu_cli.models.network import (
    Network,
    classes_and_channels,
    does_not_fit,
    load_tensors,
    tensor_differences,
)


def user_network(checkpoint: Checkpoint, arch: str) -> Network:
    module = user_module(arch)
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    # A prefix such as `model.` may belong to a wrapper or to this very module, so that the names
    # as stored are tried first.
    prefix = checkpoint.prefix
    prefixes = ["", *(prefix[: dot + 1] for dot, letter in enumerate(prefix) if letter == ".")]
    readings = [checkpoint.under(prefix) for prefix in prefixes]
    checkpoint = min(
        readings, key=lambda reading: len(tensor_differences(expected, reading.shapes))
    )
    found = tensor_differences(expected, checkpoint.shapes)
    if found:
        raise CheckpointError(does_not_fit(checkpoint, f"--arch {printable(arch)}", found))
    load_tensors(module.float(), checkpoint.tensors)
    before = _sums(module)
    changed = [name for name, sums in _sums(module.eval()).items() if sums != before[name]]
    if changed:
        raise CheckpointError(
            f"--arch {printable(arch)}: eval() changes {len(changed)} parameters, first"
            f" {printable(changed[0])}, as LoRA layers that merge themselves do; expected weights"
            " that stay as they are in the file: merge them and save the network with plain layers"
        )
    print_to_stderr(module)
    classes, channels = classes_and_channels(module, f"--arch {printable(arch)}")
    return Network(module, arch, None, classes, channels, None, checkpoint.prefix, "--arch")


def _sums(module: nn.Module) -> dict[str, tuple[float, float]]:
    """Two sums of each parameter, which tell whether it was changed in place. NaN counts as 0."""
    with torch.no_grad():
        return {
            name: (
                p.double().nan_to_num(0.0).sum().item(),
                p.double().nan_to_num(0.0).norm().item(),
            )
            for name, p in module.named_parameters()
        }


def user_module(arch: str) -> nn.Module:
    """The module that the user's `--arch FILE.py:FUNCTION` or `pkg.mod:FUNCTION` returns.

    Raises InvalidUsage where the function cannot be imported or called, or does not return a
    module.
    """
    function = _imported_function(arch)
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results
            module = function()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InvalidUsage(
            f"--arch {printable(arch)}: calling it without arguments raised"
            f" {type(error).__name__}: {printable(error)}; expected a function that returns the"
            " module"
        ) from None
    if not isinstance(module, nn.Module):
        raise InvalidUsage(
            f"--arch {printable(arch)}: returned a {type(module).__name__}, expected a"
            " torch.nn.Module"
        )
    return module


class _SourceOnlyLoader(SourceFileLoader):
    """Runs the source file itself. Bytecode beside the file is not read, since anyone may have put
    it there, and none is written, since the folder is the user's."""

    def path_stats(self, path: str | bytes) -> NoReturn:
        raise OSError  # importlib uses no bytecode if it cannot tell the age of the source


def _imported_function(arch: str) -> Callable[..., Any]:
    place, _, function = arch.rpartition(":")
    shown = printable(arch)
    try:
        if place.endswith(".py"):
            path = Path(place)
            if not path.is_file():
                raise InvalidUsage(f"--arch {shown}: no file {printable(place)}")
            name = f"pbu_arch_{path.stem}"
            loader = _SourceOnlyLoader(name, place)
            spec = importlib.util.spec_from_file_location(name, place, loader=loader)
            assert spec is not None
            source = importlib.util.module_from_spec(spec)
            sys.modules[name] = source  # dataclasses and pickle look their module up here
            with redirect_stdout(sys.stderr):
                loader.exec_module(source)
        elif re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", place):
            source = import_module(place)
        else:
            raise InvalidUsage(f"--arch {shown}: expected FILE.py:FUNCTION or pkg.mod:FUNCTION")
        found = getattr(source, function, None)
    except InvalidUsage:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InvalidUsage(
            f"--arch {shown}: importing it raised {type(error).__name__}: {printable(error)}"
        ) from None
    if not callable(found):
        raise InvalidUsage(f"--arch {shown}: {printable(place)} has no function {function}")
    return found  # type: ignore[no-any-return]
