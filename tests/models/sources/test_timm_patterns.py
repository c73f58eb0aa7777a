"""Free sizes of tensors, and the image sizes that they tell."""

from __future__ import annotations

import pytest

from pbu_cli.models.sources.timm_patterns import (
    CLASSES,
    Form,
    Free,
    Shapes,
    free_sizes,
    image_size,
    names_digest,
    shapes_digest,
)

FORM = Form({"head.#.weight": (Free(0, CLASSES),), "head.bias": (Free(0, CLASSES),)}, False)


def digest(shapes: Shapes) -> str:
    free = free_sizes(FORM, shapes)
    assert free is not None
    return shapes_digest(shapes, free)


def test_free_sizes_do_not_change_the_digest_and_others_do() -> None:
    shapes = {"head.3.weight": (10, 4), "head.bias": (10,), "norm.weight": (4,)}
    assert digest(shapes) == digest(shapes | {"head.3.weight": (7, 4), "head.bias": (7,)})
    assert digest(shapes) != digest(shapes | {"head.3.weight": (10, 5)})
    assert digest(shapes) != digest(shapes | {"norm.weight": (5,)})
    assert digest(shapes) == digest(dict(reversed(shapes.items())))


def test_a_tensor_with_too_few_dimensions_has_no_free_sizes() -> None:
    assert free_sizes(FORM, {"head.bias": ()}) is None


def test_names_that_differ_have_digests_that_differ() -> None:
    assert names_digest(["a", "b"]) == names_digest(["b", "a"])
    assert names_digest(["a,b"]) != names_digest(["a", "b"]) != names_digest(["ab"])


@pytest.mark.parametrize(
    ("rule", "count", "size"),
    [
        ((16, 1, 0, 2, 1), 197, 224),
        ((16, 1, 0, 2, 1), 198, None),
        ((16, 1, 0, 2, 1), 1, None),
        ((16, 1, 0, 2, 1), 0, None),
        ((32, 2, -1, 2, 0), 169, 224),
        ((32, 2, -1, 2, 0), 196, None),
        ((16, 1, -1, 1, 0), 31, 512),
    ],
)
def test_the_rules_of_image_sizes(rule: tuple[int, ...], count: int, size: int | None) -> None:
    assert image_size(rule, count) == size
