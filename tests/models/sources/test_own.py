"""Of the user's file only the source is run."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import sys
from pathlib import Path

import pytest

from pbu_cli.models.sources.own import user_module


def test_what_is_run_is_the_file_and_no_bytecode_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A .pyc that claims to be of the file is not what the user has read and named."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "own.py"
    file.write_text("from torch.nn import Linear\ndef net(): return Linear(2, 3)\n")
    assert user_module(f"{file}:net").out_features == 3
    assert list(tmp_path.iterdir()) == [file]

    other = tmp_path / "other.py"
    other.write_text(file.read_text().replace("3", "9"))
    os.utime(other, ns=(file.stat().st_mtime_ns,) * 2)
    py_compile.compile(str(other), importlib.util.cache_from_source(str(file)))
    assert user_module(f"{file}:net").out_features == 3
