"""The table of classifiers agrees with the installed torchvision and tells them apart."""

from __future__ import annotations

from itertools import combinations

import pytest

from pbu_cli.models.sources.torchvision_registry import CHANNELS, CLASSES, registry, stem
from tests.measure import make_registry
from tests.measure.make_registry import classifier, classifiers, first_convolution


def test_the_registry_file_is_that_of_the_installed_torchvision() -> None:
    patterns = {name: make_registry.pattern(name) for name in classifiers()}
    assert make_registry.FILE.read_text("utf-8") == make_registry.packed(patterns), (
        "torchvision's classifiers changed: run python -m tests.measure.make_registry"
    )
    assert registry() == patterns


def test_no_two_classifiers_can_have_the_same_tensors() -> None:
    """No choice of classes, channels, image size and stem makes one the other."""

    def alike(a: tuple[int | str, ...], b: tuple[int | str, ...]) -> bool:
        return len(a) == len(b) and all(
            x == y or isinstance(x, str) or isinstance(y, str) for x, y in zip(a, b, strict=True)
        )

    patterns = registry()
    for one, other in combinations(patterns, 2):
        a, b = patterns[one], patterns[other]
        if a.keys() == b.keys():
            assert not all(alike(a[name], b[name]) for name in a if name != "conv1.weight")


@pytest.mark.parametrize("name", classifiers())
def test_the_stem_is_the_first_convolution_and_alone_has_the_image_channels(name: str) -> None:
    assert stem(name) == first_convolution(classifier(name, 10))
    pattern = registry()[name]
    assert [tensor for tensor, shape in pattern.items() if CHANNELS in shape] == [stem(name)]
    assert any(CLASSES in shape for shape in pattern.values())
