"""`--require`: which criteria are read, which hold, and which are unknown."""

import pytest

from pbu_cli.errors import InvalidUsage
from pbu_cli.evaluation.requirements import parse, unmet


@pytest.mark.parametrize(
    "text",
    ["A_Df<=1", " A_Dr >= 99.1", "probe~2", "log_p_retain>=-14", "damage<=2", "worst_class>=-5"],
)
def test_criteria_are_read_as_written(text: str) -> None:
    assert str(parse(text)) == text.replace(" ", "")


@pytest.mark.parametrize(
    "text",
    ["A_Dx<=1", "A_Df<1", "probe~-2", "probe", "js<=", "js<=1e9", "damage~1", "worst_class~1", ""],
)
def test_a_criterion_that_cannot_be_understood_is_a_usage_error(text: str) -> None:
    with pytest.raises(InvalidUsage, match="--require"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "value", "retrained", "holds"),
    [
        ("probe<=90", 90.0, None, True),
        ("probe<=90", 90.1, None, False),
        ("A_Dr>=80", 79.9, None, False),
        ("probe~2", 90.5, 88.5, True),
        ("probe~2", 86.4, 88.5, False),  # a difference below counts as well
        ("probe~2", 90.6, 88.5, False),
    ],
)
def test_bounds_hold_or_do_not(
    text: str, value: float, retrained: float | None, holds: bool
) -> None:
    criterion = parse(text)
    reference = None if retrained is None else {criterion.measure: retrained}
    assert (unmet([criterion], {criterion.measure: value}, reference) == []) == holds


def test_an_unknown_measure_meets_no_criterion_and_the_message_names_the_flag() -> None:
    assert unmet([parse("probe<=99")], {}) == [
        "probe is unknown without --retain, required probe<=99"
    ]
    assert "--members" in unmet([parse("membership<=0.5")], {"probe": 1.0})[0]
    assert "retrained network is unknown" in unmet([parse("probe~2")], {"probe": 90.0})[0]
    assert unmet([parse("effective_classes>=2")], {"effective_classes": float("nan")})
