"""The stem's max-pool and the misfit of images are found by the BatchNorm statistics."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from pbu_cli.benchmark.demo_digits import ARCHITECTURE, PREPROCESSING, DemoFiles
from pbu_cli.data.preprocessing import normalise
from pbu_cli.images.decoding import DecodedImages, decode
from pbu_cli.images.image_folders import list_groups
from pbu_cli.inputs.fit import Fitted, fit, fit_stem
from pbu_cli.inputs.inferred import InferenceLog, Inferred
from pbu_cli.inputs.loaded_model import LoadedModel, load_model
from pbu_cli.models.sources.torchvision_build import initialised, set_stem_pool
from pbu_cli.settings import InputOptions


def images_of(files: DemoFiles, digit: int, side: int | None = None) -> DecodedImages:
    groups = list_groups([str(files.train / str(digit))])
    return decode(groups, channels=1, size=None if side is None else (side, side))


@pytest.fixture(scope="module")
def loaded(digits: DemoFiles) -> LoadedModel:
    return load_model(digits.checkpoint, InputOptions(device="cpu"), InferenceLog())


def calibrated(loaded: LoadedModel, files: DemoFiles, *, pooled: bool) -> LoadedModel:
    """The model with random weights, and BatchNorm statistics of all digits under this stem."""
    module = initialised(ARCHITECTURE, seed=0)
    set_stem_pool(module, pooled)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the average of all batches, of which there is one
    with torch.no_grad():
        module.train()(
            normalise(decode(list_groups([str(files.train)]), channels=1).pixels, PREPROCESSING)
        )
    return replace(loaded, network=replace(loaded.network, module=module.eval()))


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("digit", [1, 8])
def test_the_max_pool_of_a_small_stem_is_found_from_one_class(
    loaded: LoadedModel, digits: DemoFiles, pooled: bool, digit: int
) -> None:
    model, images = calibrated(loaded, digits, pooled=pooled), images_of(digits, digit)
    found = fit(model, images, [digit], InputOptions())
    assert found.stem is not None
    assert found.stem.value is pooled
    assert "otherwise" in found.stem.source
    assert isinstance(model.network.module.maxpool, nn.MaxPool2d) is pooled
    set_stem_pool(model.network.module, not pooled)
    fit_stem(model, images.pixels, PREPROCESSING, 256)
    assert isinstance(model.network.module.maxpool, nn.MaxPool2d) is pooled


def test_a_recorded_stem_is_believed(loaded: LoadedModel, digits: DemoFiles) -> None:
    recorded = replace(loaded, description=replace(loaded.description, stem_pool=True))
    found = fit(recorded, images_of(digits, 8), [8], InputOptions())
    assert found.stem == Inferred("stem", True, "metadata written by pbu", "3x3, with a max-pool")
    set_stem_pool(loaded.network.module, pooled=False)


@pytest.mark.parametrize("digit", range(10))
def test_single_classes_fit_the_network_that_was_trained_on_them(
    loaded: LoadedModel, digits: DemoFiles, digit: int
) -> None:
    assert fit(loaded, images_of(digits, digit), [None], InputOptions()).misfit() == ""


def test_images_of_four_times_the_size_do_not_fit_and_the_right_size_is_named(
    loaded: LoadedModel, digits: DemoFiles
) -> None:
    images = images_of(digits, 8, 32)
    found = fit(loaded, images, [None], InputOptions())
    assert "the images at 32x32 do not fit" in found.misfit()
    stated = InputOptions(size=(32, 32), mean=(0.5,), std=(0.5,))
    assert fit(loaded, images, [None], stated).misfit() == ""


def test_a_better_size_is_said(loaded: LoadedModel) -> None:
    normalisation = Inferred("normalisation", PREPROCESSING, "")
    assert Fitted(normalisation, None, 0.07).misfit() == ""
    assert "at 4x4 it would be 0.010" in Fitted(normalisation, None, 0.07, (4, 0.01)).misfit()
    assert Fitted(normalisation, None, None).misfit() == ""
