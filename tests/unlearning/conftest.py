"""Fixtures for the tests of the method."""

from __future__ import annotations

import pytest

from tests.unlearning.patterns import Patterns, trained_on_patterns


@pytest.fixture(scope="module")
def patterns() -> Patterns:
    """A trained network and its images; a test that changes the network restores it."""
    return trained_on_patterns()
