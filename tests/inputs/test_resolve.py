"""What is resolved from flags, config, metadata and images, and which source wins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.errors import CheckpointError, InvalidUsage
from pbu_cli.images.decoding import DecodedImages
from pbu_cli.images.image_folders import list_groups
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.inputs.labels import labels_from_flags, resolve_class_folders
from pbu_cli.inputs.loaded_model import LoadedModel, load_model
from pbu_cli.inputs.resolve import resolve_normalisation, resolve_size
from pbu_cli.settings import InputOptions


@pytest.fixture(scope="module")
def loaded(digits: DemoFiles) -> LoadedModel:
    return load_model(digits.checkpoint, InputOptions(device="cpu"), InferenceLog())


def described(loaded: LoadedModel, **facts: object) -> LoadedModel:
    """The same model with a config.json that states some facts."""
    sources = {**loaded.description.sources, **dict.fromkeys(facts, "config.json")}
    return replace(loaded, description=replace(loaded.description, **facts, sources=sources))  # type: ignore[arg-type]


def test_the_size_comes_from_the_flag_then_the_config_then_the_images(
    digits: DemoFiles, loaded: LoadedModel
) -> None:
    groups = list_groups([str(digits.train / "8")])
    own, odd = resolve_size(groups, InputOptions(), loaded)
    assert not odd
    assert (own.value, own.text) == ((8, 8), "8x8")
    stated = described(loaded, size=(12, 16))
    assert resolve_size(groups, InputOptions(), stated)[0].value == (12, 16)
    assert resolve_size(groups, InputOptions(), stated)[0].source == "config.json"
    flagged, _ = resolve_size(groups, InputOptions(size=(24, 24)), stated)
    assert (flagged.value, flagged.source) == ((24, 24), "--size")


def test_a_network_of_one_size_refuses_another(digits: DemoFiles, loaded: LoadedModel) -> None:
    fixed = replace(loaded, network=replace(loaded.network, image_size=32))
    groups = list_groups([str(digits.train / "8")])
    assert resolve_size(groups, InputOptions(), fixed)[0].value == (32, 32)
    with pytest.raises(InvalidUsage, match="takes only 32x32"):
        resolve_size(groups, InputOptions(size=(8, 8)), fixed)


def test_a_folder_of_class_folders_is_split_and_labels_may_be_given_once_or_for_each(
    digits: DemoFiles, loaded: LoadedModel
) -> None:
    groups = list_groups([str(digits.train)])
    folders = resolve_class_folders(groups, InputOptions(), loaded)
    assert [folder.named for folder in folders] == list(range(10))
    assert labels_from_flags(InputOptions(), folders, loaded) == [None] * 10
    assert labels_from_flags(InputOptions(labels=("3",)), folders, loaded) == [3] * 10
    with pytest.raises(InvalidUsage, match="given 2 times for 10"):
        labels_from_flags(InputOptions(labels=("3", "4")), folders, loaded)
    whole = resolve_class_folders(groups, InputOptions(labels=("3",)), loaded)
    assert [folder.named for folder in whole] == [None]


def test_the_normalisation_comes_from_the_flags_before_the_config(loaded: LoadedModel) -> None:
    images = DecodedImages(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2).long())
    stated = described(loaded, mean=(0.1,), std=(0.2,))
    found = resolve_normalisation(stated, images, [None], InputOptions())
    assert (found.value.mean, found.value.std, found.source) == ((0.1,), (0.2,), "config.json")
    options = InputOptions(mean=(0.3,), std=(0.4,))
    found = resolve_normalisation(stated, images, [None], options)
    assert (found.value.mean, found.source) == ((0.3,), "--mean, --std")
    with pytest.raises(InvalidUsage, match="got one of them"):
        resolve_normalisation(loaded, images, [None], InputOptions(mean=(0.3,)))
    three = described(loaded, mean=(0.1, 0.1, 0.1), std=(0.2, 0.2, 0.2))
    with pytest.raises(CheckpointError, match="expected 1, one a channel"):
        resolve_normalisation(three, images, [None], InputOptions())
