"""JSON from untrusted sources is refused where readers could disagree about it."""

from __future__ import annotations

import math

import pytest

from pbu_cli.io.strict_json import from_json, to_json


def test_what_is_written_is_read_back_in_the_types_of_json() -> None:
    content = {"a": (1, math.nan, -math.inf), "b": {3: "é\n"}, "c": None, "d": [True, 0.5]}
    text = to_json(content)
    assert text.endswith("}\n")
    expected = {"a": [1, None, None], "b": {"3": "é\n"}, "c": None, "d": [True, 0.5]}
    assert from_json(text.encode()) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": {"b": 1, "b": 1}}', "the key b occurs twice"),
        (b'{"\\u001b[2J": 1, "\x5cu001b[2J": 2}', r"the key \\x1b\[2J occurs twice"),
        (b'{"a": "\xff"}', "utf-8"),
        (b'{"a": 1', "delimiter"),
        (b"", "Expecting value"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_json_that_is_ambiguous_or_invalid_is_a_value_error(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        from_json(content)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("text", [b"[NaN]", b"[Infinity]", b"[-Infinity]", b"[1e999]"])
def test_what_is_no_finite_number_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"no JSON|too large a number"):
        from_json(text)
