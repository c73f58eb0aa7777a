"""What folder names, predictions and the history say about a label, and when they contradict."""

from __future__ import annotations

import pytest
import torch

from pbu_cli.data.label_inference import (
    MAJORITY,
    OVERWHELMING,
    History,
    LabelRules,
    majority,
    resolve_label,
)
from pbu_cli.errors import ImageError

FREE = LabelRules(binding=False)
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
    with pytest.raises(ImageError, match="class that they show, 8 or 3"):
        resolve_label("class8", None, 8, THREES)
    assert resolve_label("class8", None, 8, THREES, rules=FREE).index == 8


def test_the_one_forgotten_class_in_the_metadata_is_the_label() -> None:
    found = resolve_label("x", None, None, THREES, rules=FREE, history=History((8,)))
    assert found.index == 8
    assert found.source.startswith("the forgotten class in the metadata; ")
    assert resolve_label("8", None, 8, THREES, rules=FREE, history=History((3, 8))).index == 8
    assert resolve_label("3", 3, 3, THREES, rules=FREE, history=History((8,))).index == 3


def test_a_name_that_contradicts_the_metadata_is_an_error_that_names_the_flags() -> None:
    with pytest.raises(ImageError, match=r"forgotten 8: pass --label 3, or with --orig"):
        resolve_label("class3", None, 3, THREES, rules=FREE, history=History((8,)))


def test_a_name_that_hardly_any_prediction_agrees_with_gives_a_warning() -> None:
    spread = torch.arange(20) % 8
    doubt = resolve_label("class8", None, 8, spread).doubt
    assert doubt is not None
    assert "predicts 8 for only 0.0 % of its 20 images (most often 0: 15.0 %)" in doubt
    assert resolve_label("class8", None, 8, MIXED).doubt is None
    assert resolve_label("class8", None, 8, spread, rules=FREE).doubt is None


def test_without_a_name_the_majority_of_the_predictions_decides() -> None:
    assert resolve_label("x", None, None, EIGHTS).index == 8
    with pytest.raises(ImageError, match="--label"):
        resolve_label("x", None, None, MIXED)
    with pytest.raises(ImageError, match="--label, or --original"):
        resolve_label("x", None, None, EIGHTS, rules=FREE, history=History((2, 3)))


SHIPS = {0: 57.0, 9: 16.0, 1: 13.0, 6: 6.0, 2: 5.0, 3: 3.0}  # after ships (8) were forgotten
HISTORY = History((8,), {8: SHIPS})


def predicted(shares: dict[int, float], images: int = 100) -> torch.Tensor:
    counts = [(label, round(share * images / 100)) for label, share in shares.items()]
    return torch.cat([torch.full((count,), label) for label, count in counts])


def test_images_that_are_predicted_like_those_of_a_forgotten_class_are_of_that_class() -> None:
    """Airplane is the commonest prediction, and before there was a history it was the label."""
    found = resolve_label("ship", None, None, predicted(SHIPS), history=HISTORY)
    assert found.index == 8
    assert "what it predicted for those of this class" in found.source
    other_ships = predicted({0: 62, 9: 15, 1: 11, 6: 6, 2: 4, 3: 2})
    assert resolve_label("ship", None, None, other_ships, history=HISTORY).index == 8


@pytest.mark.parametrize(
    "shares",
    [{0: 89, 8: 0, 2: 11}, {3: 64, 5: 20, 2: 16}, {0: 100}, {0: 75, 9: 16, 1: 1, 6: 4, 2: 4}],
)
def test_no_vote_of_a_network_with_a_history_tells_a_label(shares: dict[int, float]) -> None:
    with pytest.raises(ImageError, match=r"has forgotten 8 before.* pass --label"):
        resolve_label("ship", None, None, predicted(shares), history=HISTORY)


def test_a_forgotten_class_that_all_images_looked_like_another_is_not_told_from_that_one() -> None:
    history = History((8,), {8: {0: 97.0, 9: 3.0}})
    with pytest.raises(ImageError, match="pass --label"):
        resolve_label("ship", None, None, predicted({0: 97, 9: 3}), history=history)


def test_a_name_of_a_forgotten_class_is_believed_against_the_predictions() -> None:
    found = resolve_label("class8", None, 8, THREES, history=HISTORY)
    assert (found.index, found.doubt) == (8, None)
    with pytest.raises(ImageError, match="8 or 3"):
        resolve_label("class8", None, 8, THREES, history=History((2,)))


@pytest.mark.parametrize(
    ("shares", "strict", "accepted"),
    [
        ({8: 95, 3: 5}, True, True),
        ({8: 89, 3: 11}, True, False),
        ({8: 89, 3: 11}, False, True),
        ({8: 60, 3: 40}, False, False),
        ({8: 49, 3: 10, 2: 41}, False, False),
    ],
)
def test_a_vote_has_to_be_clear_and_for_unlearning_overwhelming(
    shares: dict[int, float], strict: bool, accepted: bool
) -> None:
    rules = LabelRules(vote=OVERWHELMING if strict else MAJORITY)
    if accepted:
        found = resolve_label("x", None, None, predicted(shares), rules=rules)
        assert found.index == 8
        assert "3 for" in found.source
    else:
        with pytest.raises(ImageError, match="--label"):
            resolve_label("x", None, None, predicted(shares), rules=rules)


def test_a_vote_is_asked_about_where_the_name_or_the_fit_speaks_against_it() -> None:
    strict, sure = LabelRules(vote=OVERWHELMING), predicted({8: 98, 3: 2})
    with pytest.raises(ImageError, match=r"the name says 12.*--label 8, or --yes"):
        resolve_label("class12", None, None, sure, rules=strict)
    assert resolve_label("class12", None, None, sure).index == 8
    for rules in (strict, LabelRules()):
        with pytest.raises(ImageError, match=r"do not fit.*--size"):
            resolve_label("x", None, None, sure, rules=rules, misfit="the images do not fit")


def test_a_name_that_another_class_outnumbers_gives_a_warning() -> None:
    split = predicted({3: 45, 8: 40, 2: 15})
    assert "(most often 3: 45.0 %)" in str(resolve_label("8", None, 8, split).doubt)
