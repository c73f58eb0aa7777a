"""A published checkpoint of ../shared forgets a class and keeps the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.measure.results import row

pytestmark = pytest.mark.slow  # runs commands from start to end


def test_cifar_resnet20_forgets_cats_and_keeps_the_rest(cifar10: Path, tmp_path: Path) -> None:
    (tmp_path / "cifar10").symlink_to(cifar10)
    found = row("resnet20", 3, tmp_path, tmp_path, None, 0, [])
    a_df, a_dr = found["result"]
    assert a_df <= 1
    assert a_dr >= found["original"][1]
