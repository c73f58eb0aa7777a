"""Which class a text names, and when the name of a folder speaks against a class."""

from __future__ import annotations

import pytest

from pbu_cli.data.label_names import contradiction, label_from_name, parse_label
from pbu_cli.errors import InvalidUsage

NAMES = ("tench", "great white shark", "Ship")


@pytest.mark.parametrize(
    ("folder", "names", "label"),
    [
        ("8", None, 8),
        ("class8", None, 8),
        ("class_08", None, 8),
        ("train2017", None, None),
        ("12", None, None),
        ("v2-class8", None, None),
        ("ships", NAMES, None),
        ("ship", NAMES, 2),
        ("great_white-shark", NAMES, 1),
        ("", NAMES, None),
        ("9" * 400, None, None),
    ],
)
def test_the_label_of_a_folder_name(
    folder: str, names: tuple[str, ...] | None, label: int | None
) -> None:
    assert label_from_name(folder, names, 10) == label


def test_names_of_subfolders_are_read_strictly() -> None:
    assert label_from_name("part1", None, 10) == 1
    assert label_from_name("part1", None, 10, strict=True) is None
    assert label_from_name("class 1", None, 10, strict=True) == 1


def test_the_user_gives_a_label_by_name_or_index() -> None:
    assert parse_label("Ship", "--label", NAMES, 3) == 2
    assert parse_label("1", "--label", NAMES, 3) == 1
    for text in ("3", "-1", "ship!", "1e0", "²"):
        with pytest.raises(InvalidUsage, match="--label"):
            parse_label(text, "--label", NAMES, 3)


@pytest.mark.parametrize(
    ("folder", "label", "found"),
    [
        ("ship", 8, ""),
        ("class8", 8, ""),
        ("class12", 8, "the name says 12"),
        ("batch 1 of 3", 8, "the name says 1 and 3"),
        ("batch 1 of class 8", 8, ""),
        ("9" * 30, 8, ""),
        ("", 8, ""),
    ],
)
def test_numbers_in_a_name_speak_against_every_other_class(
    folder: str, label: int, found: str
) -> None:
    assert contradiction(folder, label) == found


@pytest.mark.parametrize("folder", ["-1", "+1", "_1", " 1", "\uff11", "-1.0", "1e0"])
def test_a_sign_or_a_digit_of_another_script_makes_no_class(folder: str) -> None:
    assert label_from_name(folder, None, 10, strict=True) is None
    with pytest.raises(InvalidUsage):
        parse_label(folder, "--label", None, 10)
    assert label_from_name("-1", None, 10) is None
    assert label_from_name("class-1", None, 10, strict=True) == 1
