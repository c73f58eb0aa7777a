"""A few cases for every door of tests/attack/fuzz.py, and all that was ever found there."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.attack.fuzz import Target, attempt, fuzz, pickles, targets

CASES = int(os.environ.get("PBU_FUZZ_CASES", "40"))
CORPUS = sorted((Path(__file__).parent / "corpus").glob("*/*"))
TARGETS = targets()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_what_is_made_up_is_read_or_refused_in_a_line(name: str) -> None:
    seen: Counter[str] = Counter()
    fuzz(TARGETS[name], cases=CASES, seed=0, seen=seen)
    assert seen.total() >= min(CASES, 20)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", CORPUS, ids=str)
def test_what_was_found_once_is_refused_for_good(path: Path) -> None:
    assert attempt(TARGETS[path.parent.name], path.read_bytes()) != "read"


@pytest.mark.filterwarnings("ignore")
def test_odd_tensors_and_packed_archives_are_refused() -> None:
    """All but the first three: an expanded, a sparse, a complex and a meta tensor."""
    found = [attempt(TARGETS["pickle"], data) for data in pickles()]
    assert set(found[3:]) == {"CheckpointError"}


def test_a_crash_is_a_crash() -> None:
    def feed(data: bytes, folder: Path) -> None:
        raise KeyError(data)

    with pytest.raises(KeyError):
        attempt(Target(TARGETS["image"].cases, feed), b"x")
