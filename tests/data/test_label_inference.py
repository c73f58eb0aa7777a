"""What folder names and predictions say about a label, and when they contradict each other."""

from __future__ import annotations

import pytest
import torch

from pbu_cli.data.label_inference import label_from_name, majority, parse_label, resolve_label
from pbu_cli.errors import ImageError, InvalidUsage

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


EIGHTS = torch.tensor([8] * 9 + [3])
THREES = torch.tensor([3] * 9 + [8])
MIXED = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 8])


def test_a_tie_goes_to_the_lowest_class() -> None:
    assert majority(torch.tensor([3, 1, 1, 3, 2])) == 1


def test_the_label_flag_wins_over_everything() -> None:
    assert resolve_label("class3", 8, 3, THREES).index == 8


def test_a_name_is_the_label_unless_the_predictions_contradict_it() -> None:
    assert resolve_label("class8", None, 8, EIGHTS).index == 8
    assert resolve_label("class8", None, 8, MIXED).index == 8


def test_predictions_that_contradict_the_name_are_an_error_that_names_the_flag() -> None:
    with pytest.raises(ImageError, match="--label 8 or --label 3"):
        resolve_label("class8", None, 8, THREES)
    assert resolve_label("class8", None, 8, THREES, binding=False).index == 8


def test_the_one_forgotten_class_in_the_metadata_is_the_label() -> None:
    found = resolve_label("x", None, None, THREES, binding=False, forgotten=(8,))
    assert found.index == 8
    assert found.source.startswith("the forgotten class in the metadata; ")
    assert resolve_label("8", None, 8, THREES, binding=False, forgotten=(3, 8)).index == 8
    assert resolve_label("3", 3, 3, THREES, binding=False, forgotten=(8,)).index == 3


def test_a_name_that_contradicts_the_metadata_is_an_error_that_names_the_flags() -> None:
    with pytest.raises(ImageError, match=r"forgotten 8: pass --label 3, or with --orig"):
        resolve_label("class3", None, 3, THREES, binding=False, forgotten=(8,))


def test_a_name_that_hardly_any_prediction_agrees_with_gives_a_warning() -> None:
    spread = torch.arange(20) % 8
    doubt = resolve_label("class8", None, 8, spread).doubt
    assert doubt is not None
    assert "predicts 8 for only 0.0 % of its 20 images (most often 0: 15.0 %)" in doubt
    assert resolve_label("class8", None, 8, MIXED).doubt is None
    assert resolve_label("class8", None, 8, spread, binding=False).doubt is None


def test_without_a_name_the_majority_of_the_predictions_decides() -> None:
    assert resolve_label("x", None, None, EIGHTS).index == 8
    with pytest.raises(ImageError, match="--label"):
        resolve_label("x", None, None, MIXED)
    with pytest.raises(ImageError, match="--label, or --original"):
        resolve_label("x", None, None, EIGHTS, forgotten=(2, 3))
