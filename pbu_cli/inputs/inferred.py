"""What was inferred: a value with its source."""

from __future__ import annotations

from collections.abc import Callable

Note = Callable[[str, str, str], None]  # what was inferred, its value, the evidence
