"""Which retained classes have lost accuracy: counts by hand, the table, the criterion."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pbu_cli.cli.console import Screen
from pbu_cli.cli.evaluation_tables import _losses
from pbu_cli.evaluation.class_losses import (
    ClassLoss,
    centred_cosines,
    few_images,
    recognised_by_class,
    worst_class_basis,
    worst_of_others,
)
from tests.conftest import Ran
from tests.networks import grey_levels

FORGET = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The grey levels, and a checkpoint that has forgotten class 4 and, of seven images each, has
    lost all of class 7 and has kept the others."""
    grey_levels.write_grey_levels(tmp_path, [str(c) for c in range(12)], count=7)
    tensors = load_file(tmp_path / "grey.safetensors")
    tensors["2.bias"][[FORGET, 7]] -= 1000
    save_file(tensors, tmp_path / "clean.safetensors")
    return tmp_path


def command(folder: Path, *more: object) -> list[object]:
    return ["evaluate", folder / "clean.safetensors", "--arch",
            f"{grey_levels.__file__}:grey_levels", "--mean", "0", "--std", "1",
            "--forget", folder / "images" / str(FORGET), "--label", FORGET, *more]  # fmt: skip


def with_original(folder: Path) -> tuple[object, ...]:
    return ("--original", folder / "grey.safetensors", "--retain", folder / "images")


def test_every_class_is_in_the_document_and_the_worst_one_first(
    pbu: Callable[..., Ran], folder: Path
) -> None:
    done = pbu(*command(folder, *with_original(folder), "--json", "-q"))
    assert done.code == 0, done.err
    document = json.loads(done.out)
    classes = document["classes"]
    assert len(classes) == 11
    assert {one["images"] for one in classes} == {7}
    assert [one["change"] for one in classes] == [-100.0] + [0.0] * 10
    scores = {one["name"]: one["per_class"] for one in document["scores"]}
    for one in classes:
        label = str(one["label"])
        assert one["before"] == scores["original"][label]
        assert one["after"] == scores["checkpoint"][label]
        assert one["head_mask"] == scores["original, head mask"][label]
    worst = classes[0]
    assert (worst["label"], worst["before"], worst["after"]) == (7, 100.0, 0.0)
    masked = next(s for s in document["scores"] if s["name"] == "original, head mask")
    assert {str(one["label"]): one["likeness"] for one in classes if one["likeness"]} == masked[
        "answers"
    ]
    # The rows are multiples of one vector, so that less their mean they point one way or the other.
    assert [round(one["cosine"], 4) for one in sorted(classes, key=lambda one: one["label"])] == [
        1.0 if c <= 5 else -1.0 for c in range(12) if c != FORGET
    ]


def test_the_table_names_the_worst_classes_within_80_columns(
    pbu: Callable[..., Ran], folder: Path
) -> None:
    done = pbu(*command(folder, *with_original(folder), "-q"))
    lines = done.out.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("Retained classes that lost"))
    table = lines[start : start + 7]
    assert table[1].split() == [
        "class",
        "images",
        "before",
        "after",
        "change",
        "likeness",
        "cosine",
    ]
    assert table[2].split()[:5] == ["7", "7", "100.00", "0.00", "-100.00"]
    assert "1 of 11 retained classes lost accuracy" in done.out
    assert "11 of 11 classes have fewer than 20 images, down to 7: one image" in done.out
    assert "14.3 points or more" in done.out
    alone = pbu(*command(folder, "--retain", folder / "images", "-q"))
    assert "lost most" not in alone.out


def test_a_long_name_and_five_digits_of_images_fit_into_80_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = ClassLoss(999, None, 50_000, 100.0, 0.0, -100.0, 100.0, None, 100.0, -1.0)
    (table,) = _losses([long] * 5, lambda index: "999 " + 60 * "x")
    Screen().table(table.title, table.columns, table.rows, *table.captions)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines[:7]) <= 80
    assert lines[2].startswith("999 xxx")


def test_the_worst_class_is_a_criterion(pbu: Callable[..., Ran], folder: Path) -> None:
    given = (*with_original(folder), "-q", "--require")
    done = pbu(*command(folder, *given, "worst_class>=-5"))
    assert done.code == 5
    assert "worst_class is -100.00, required worst_class>=-5" in done.out
    assert (
        "clean.safetensors of the class that lost most of 11, class 7: 100.00 to 0.00 %" in done.out
    )
    assert "of which one is 14.29 points" in done.out
    assert pbu(*command(folder, *given, "worst_class>=-100")).code == 0


@pytest.mark.parametrize("given", [(), ("--original",), ("--retain",)])
def test_without_original_or_retained_images_the_criterion_is_a_usage_error(
    pbu: Callable[..., Ran], folder: Path, given: tuple[str, ...]
) -> None:
    values = {"--original": folder / "grey.safetensors", "--retain": folder / "images"}
    flags = [word for flag in given for word in (flag, values[flag])]
    done = pbu(*command(folder, *flags, "--require", "worst_class>=-5"))
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert "needs --original and --retain" in done.err


def test_images_are_counted_by_class() -> None:
    labels = torch.tensor([0, 0, 2, 2, 2, 5])
    predictions = torch.tensor([0, 2, 2, 2, 0, 5])
    assert recognised_by_class(predictions, labels, 7).tolist() == [1, 0, 2, 0, 0, 1, 0]


def test_a_shift_of_all_rows_alike_changes_no_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 4, generator=generator)
    forgotten = torch.tensor([False, True, False, False, True, False])
    plain = centred_cosines(rows, forgotten)
    assert torch.allclose(plain, centred_cosines(rows + 7, forgotten), atol=1e-5)
    centred = rows.double() - rows.double().mean(dim=0)
    cosine = torch.nn.functional.cosine_similarity
    assert plain[0] == pytest.approx(
        max(float(cosine(centred[0], centred[k], dim=0)) for k in (1, 4))
    )
    assert plain[1] == pytest.approx(1)


def test_what_the_basis_says_is_harmless_and_names_few_images() -> None:
    few = ClassLoss(3, "a\x1b[2Jb", 4, 100.0, 50.0, -50.0, 100.0, 75.0, 0.0, None)
    many = ClassLoss(4, "c", 40, 100.0, 100.0, 0.0, 100.0, 95.0, 0.0, None)
    said = worst_class_basis([few, many], ("new.pt", "old.pt"))
    assert said.isprintable()
    assert "1 of 2 classes have fewer than 20 images, down to 4: one image" in said
    assert few_images([many]) == ""
    both = "the worst class of the head mask changes by +0.00 points, of the retrained network by"
    assert worst_of_others([few, many]) == f"{both} -25.00"
