"""A few made-up cases for every target, and every file that once led to a fault."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.attack.cases import pickles
from tests.attack.fuzz import attempt, fuzz
from tests.attack.targets import Target, targets

CASES = int(os.environ.get("PBU_FUZZ_CASES", "40"))
CORPUS = sorted((Path(__file__).parent / "corpus").glob("*/*"))
TARGETS = targets()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_made_up_files_are_read_or_refused_in_one_line(name: str) -> None:
    seen: Counter[str] = Counter()
    fuzz(TARGETS[name], cases=CASES, seed=0, seen=seen)
    assert seen.total() >= min(CASES, 20)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", CORPUS, ids=str)
def test_files_that_once_led_to_a_fault_are_refused(path: Path) -> None:
    assert attempt(TARGETS[path.parent.name], path.read_bytes()) != "read"


@pytest.mark.filterwarnings("ignore")
def test_odd_tensors_and_packed_archives_are_refused() -> None:
    """The first three are valid; then come expanded, sparse, complex and meta tensors."""
    found = [attempt(TARGETS["pickle"], data) for data in pickles()]
    assert set(found[3:]) == {"CheckpointError"}


def test_an_unexpected_exception_counts_as_a_crash() -> None:
    def feed(data: bytes, folder: Path) -> None:
        raise KeyError(data)

    with pytest.raises(KeyError):
        attempt(Target(TARGETS["image"].cases, feed), b"x")
