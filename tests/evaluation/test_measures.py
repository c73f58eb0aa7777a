"""The table of measures: what every entry has to say."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pbu_cli.evaluation.measures import MEASURES


@pytest.mark.parametrize("key", MEASURES)
def test_every_measure_names_a_flag_that_exists_and_the_source_of_its_interval(key: Any) -> None:
    measure = MEASURES[key]
    needed = set(measure.needs.split(" and ")) if measure.needs else set()
    assert needed <= {"--retain", "--retrained", "--members", "--original"}
    assert re.search("; (bootstrap|jackknife)", measure.definition)
    assert measure.title
