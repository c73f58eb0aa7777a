"""The table of measures: what every entry has to say."""

from __future__ import annotations

from typing import Any

import pytest

from pbu_cli.evaluation.measures import MEASURES


@pytest.mark.parametrize("key", MEASURES)
def test_every_measure_names_a_flag_that_exists_and_the_source_of_its_interval(key: Any) -> None:
    measure = MEASURES[key]
    assert measure.needs in {"", "--retain", "--retrained", "--members"}
    assert "; bootstrap" in measure.definition
    assert measure.title
