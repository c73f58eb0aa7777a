"""What folder names and the network's answers are taken to say, and when they contradict."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from pbu_cli.benchmark.demo_digits import PREPROCESSING, DemoFiles
from pbu_cli.data.decoding import decode
from pbu_cli.data.image_folders import list_groups
from pbu_cli.data.label_inference import label_from_name, parse_label, resolve_label
from pbu_cli.data.normalization_inference import rank_normalisations
from pbu_cli.data.preprocessing import normalise
from pbu_cli.errors import ImageError, InvalidUsage
from pbu_cli.inputs.loaded_model import load_model
from pbu_cli.settings import NORMALISATIONS, InputOptions, Preprocessing

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
def test_labels_from_names(folder, names, label):
    assert label_from_name(folder, names, 10) == label


def test_names_of_subfolders_are_read_strictly():
    assert label_from_name("part1", None, 10) == 1
    assert label_from_name("part1", None, 10, strict=True) is None
    assert label_from_name("class 1", None, 10, strict=True) == 1


def test_a_label_of_the_users_is_a_name_or_an_index():
    assert parse_label("Ship", "--label", NAMES, 3) == 2
    assert parse_label("1", "--label", NAMES, 3) == 1
    for text in ("3", "-1", "ship!", "1e0", "²"):
        with pytest.raises(InvalidUsage, match="--label"):
            parse_label(text, "--label", NAMES, 3)


EIGHTS = torch.tensor([8] * 9 + [3])
THREES = torch.tensor([3] * 9 + [8])
MIXED = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 8])


def test_the_users_label_wins_over_everything():
    assert resolve_label("class3", 8, 3, THREES).index == 8


def test_a_name_that_the_answers_do_not_contradict_is_the_label():
    assert resolve_label("class8", None, 8, EIGHTS).index == 8
    assert resolve_label("class8", None, 8, MIXED).index == 8


def test_answers_that_contradict_the_name_are_an_error_that_names_the_flag():
    with pytest.raises(ImageError, match="--label 8 or --label 3"):
        resolve_label("class8", None, 8, THREES)
    assert resolve_label("class8", None, 8, THREES, binding=False).index == 8


def test_a_record_of_what_was_forgotten_is_the_label_and_says_so():
    found = resolve_label("x", None, None, THREES, binding=False, forgotten=(8,))
    assert (found.index, found.source.partition(":")[0]) == (8, "metadata")
    assert resolve_label("8", None, 8, THREES, binding=False, forgotten=(3, 8)).index == 8
    assert resolve_label("3", 3, 3, THREES, binding=False, forgotten=(8,)).index == 3


def test_a_record_that_the_name_contradicts_is_an_error_that_names_the_flags():
    with pytest.raises(ImageError, match=r"forgotten 8: settle it with --label 3, or with --orig"):
        resolve_label("class3", None, 3, THREES, binding=False, forgotten=(8,))


def test_a_name_that_the_network_knows_nothing_of_is_doubted():
    spread = torch.arange(20) % 8
    doubt = resolve_label("class8", None, 8, spread).doubt
    assert doubt is not None
    assert "only 0.0 % of its 20 images 8 (commonest: 15.0 % 0)" in doubt
    assert resolve_label("class8", None, 8, MIXED).doubt is None
    assert resolve_label("class8", None, 8, spread, binding=False).doubt is None


def test_without_a_name_the_majority_decides_if_there_is_one():
    assert resolve_label("x", None, None, EIGHTS).index == 8
    with pytest.raises(ImageError, match="--label"):
        resolve_label("x", None, None, MIXED)
    with pytest.raises(ImageError, match="--label, or --original"):
        resolve_label("x", None, None, EIGHTS, forgotten=(2, 3))


@pytest.mark.parametrize("digit", range(10))
@pytest.mark.parametrize("known", [True, False])
def test_the_training_normalisation_is_found_from_any_one_class(digits: DemoFiles, digit, known):
    loaded = load_model(digits.checkpoint, InputOptions(device="cpu"), lambda *note: None)
    images = decode(list_groups([str(digits.train / str(digit))]), channels=1)
    labels = [digit if known else None]
    best = rank_normalisations(loaded.network.module, images.pixels, images.group, labels)[0]
    assert best.preprocessing == PREPROCESSING
    assert best.recognised > 90


def test_the_evidence_of_a_normalisation_is_of_all_images_however_they_are_batched(
    digits: DemoFiles,
):
    loaded = load_model(digits.checkpoint, InputOptions(device="cpu"), lambda *note: None)
    images = decode(list_groups([str(digits.train / "8")]), channels=1)
    at_once, in_parts = (
        rank_normalisations(loaded.network.module, images.pixels, images.group, [8], size)
        for size in (256, 7)
    )
    for one, other in zip(at_once, in_parts, strict=True):
        assert (one.name, one.recognised) == (other.name, other.recognised)
        assert one.mismatch == pytest.approx(other.mismatch, rel=1e-4)
    normal = Preprocessing((8, 8), (0.5,), (0.5,))
    x = loaded.network.module.conv1(normalise(images.pixels, normal)).detach().transpose(0, 1)
    layer = loaded.network.module.bn1
    fit = Normal(layer.running_mean, layer.running_var.sqrt())
    given = Normal(x.flatten(1).mean(1), x.flatten(1).std(1, correction=0))
    assert at_once[0].preprocessing == normal
    assert at_once[0].mismatch == pytest.approx(kl_divergence(given, fit).mean().item(), rel=1e-4)


@pytest.mark.parametrize(("close", "again"), [(0.0, 0), (72.0, 2), (math.inf, len(NORMALISATIONS))])
def test_who_is_far_behind_after_a_few_images_is_tried_on_no_more(close, again, monkeypatch):
    monkeypatch.setattr("pbu_cli.data.normalization_inference.CLOSE", close)
    seen: list[int] = []

    class Bright(nn.Module):
        """Calls an image 0 the surer, the closer its mean is to that under "unit range"."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            off = (x.mean((1, 2, 3)) - 0.5).abs() + self.bias
            return torch.stack([0.1 - off, torch.zeros_like(off)], dim=1)

    pixels = torch.linspace(100, 155, 300).byte().view(300, 1, 1, 1)
    ranking = rank_normalisations(Bright(), pixels, torch.zeros(300, dtype=torch.int64), [0])
    assert ranking[0].name == "unit range"
    assert {c.name for c in ranking} == set(NORMALISATIONS)
    assert seen == [64] * len(NORMALISATIONS) + [256] * again
    assert ranking == sorted(ranking, key=lambda c: -c.score)
