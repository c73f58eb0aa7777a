"""Each method against a prepared that can be checked by hand."""

from __future__ import annotations

import copy
import math
import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.methods import (
    NAMES,
    bad_teaching,
    fast_effective,
    find,
    gradient_ascent,
    pbu_paper,
)
from pbu_cli.benchmark.methods.task import Result, Task
from pbu_cli.benchmark.training import Recipe, train
from pbu_cli.errors import PbuError
from pbu_cli.models.inference import logits
from pbu_cli.settings import Preprocessing

UNIT = Preprocessing((6, 6), (0.5,), (0.25,))
CLASSES, FORGOTTEN = 4, 2
RECIPE = Recipe(epochs=12, rate=0.05, batch_size=32)


def fresh(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, CLASSES)
        ).eval()


def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(0, 256, (CLASSES, 1, 6, 6), generator=generator).float()
    labels = torch.arange(400) % CLASSES
    noise = 40 * torch.randn(400, 1, 6, 6, generator=generator)
    return (patterns[labels] * 0.6 + 50 + noise).clamp(0, 255).to(torch.uint8), labels


@pytest.fixture(scope="module")
def task() -> Task:
    """Four kinds of noisy images, and a small CNN that tells them apart."""
    pixels, labels = images()
    network = fresh(0)
    train(network, CountingLoader(pixels, labels, UNIT), RECIPE, seed=0)
    assert shares(network)[1] > 98
    everything = CountingLoader(pixels, labels, UNIT)
    gone = labels == FORGOTTEN
    return Task(
        network, fresh, FORGOTTEN, CLASSES, everything.chosen(gone), everything.chosen(~gone),
        RECIPE,
    )  # fmt: skip


def shares(network: nn.Module) -> tuple[float, float]:
    """Percent right of the forgotten class and of the others."""
    pixels, labels = images()
    right = logits(network, pixels, UNIT).argmax(1) == labels
    gone = labels == FORGOTTEN
    return 100 * right[gone].float().mean().item(), 100 * right[~gone].float().mean().item()


def ran(task: Task, name: str) -> list[Result]:
    """A method's results, each as it was when it was yielded."""
    return [replace(r, network=copy.deepcopy(r.network)) for r in find(name).unlearn(task)]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pbu"])
def test_every_method_leaves_the_original_alone_and_ends_in_eval_mode(task, name):
    before = copy.deepcopy(task.original.state_dict())
    results = ran(task, name)
    assert results
    assert all(not module.training for r in results for module in r.network.modules())
    assert all(torch.equal(v, before[k]) for k, v in task.original.state_dict().items())
    assert all(parameter.grad is None for parameter in task.original.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_method_states_its_source_and_what_it_reads_here_and_in_the_readme(name):
    method = find(name)
    stated = sys.modules[method.unlearn.__module__].__doc__ or ""
    assert method.name == name
    assert re.search("Source: |No paper", stated)
    reads = re.findall(r"\bReads (nothing|both|the forget|the retained|retained)", stated)
    assert len(reads) == 1
    assert reads[0].removeprefix("the ") == method.reads
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    assert f"| `{name}` | {method.reads} |" in readme


@pytest.mark.parametrize("name", NAMES)
def test_what_a_method_says_it_does_not_read_it_can_do_without(task, name, tmp_path):
    if name == "pbu":
        pytest.skip("works on files; see test_grid")
    method = find(name)
    nothing = task.forget.chosen(torch.zeros(0, dtype=torch.long))
    only = replace(
        task,
        forget=task.forget if method.reads in ("forget", "both") else nothing,
        retained=task.retained if method.reads in ("retained", "both") else nothing,
    )
    given, alone = ran(task, name)[-1].network, ran(only, name)[-1].network
    pixels, _ = images()
    assert torch.equal(logits(given, pixels, UNIT), logits(alone, pixels, UNIT))


def test_retraining_never_answers_with_the_class(task):
    (result,) = ran(task, "retrain")
    a_df, a_dr = shares(result.network)
    assert a_df == 0
    assert a_dr > 98


def test_retraining_is_the_recipe_without_the_class(task):
    (result,) = ran(task, "retrain")
    by_hand = fresh(0)
    train(by_hand, task.retained, RECIPE, seed=0)
    for one, other in zip(result.network.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(one, other)


def test_finetuning_lowers_the_loss_of_what_is_left(task):
    (result,) = ran(task, "finetune")
    losses = [
        sum(F.cross_entropy(n(x), y).item() for x, y in task.retained.batches(300))
        for n in (task.original, result.network)
    ]
    assert losses[1] < losses[0]


def test_the_noise_of_unsir_raises_the_loss_of_its_class(task):
    start = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    noise = fast_effective.maximise_error(task.original, start, FORGOTTEN)
    labels = torch.full((16,), FORGOTTEN)
    before, after = (F.cross_entropy(task.original(x), labels).item() for x in (start, noise))
    assert after > before + 1


def test_the_penalty_of_unsir_shrinks_the_noise(task):
    start = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    lengths = [
        fast_effective.maximise_error(
            task.original, start, FORGOTTEN, replace(fast_effective.SETTINGS, penalty=penalty)
        ).norm()
        for penalty in (0.0, 10.0)
    ]
    assert lengths[1] < 0.5 * lengths[0]


def test_the_impair_epoch_of_unsir_is_the_retained_images_and_all_copies(task):
    noise = 1000 + torch.arange(3.0)[:, None, None, None].expand(3, 1, 6, 6)
    some = task.retained.chosen(torch.arange(10))
    rounds = list(fast_effective.impairing(some, noise, FORGOTTEN, torch.Generator()))
    x, y = torch.cat([x for x, _ in rounds]), torch.cat([y for _, y in rounds])
    copies = x[:, 0, 0, 0] >= 1000
    assert copies.sum() == 3 * fast_effective.SETTINGS.copies
    assert (y[copies] == FORGOTTEN).all()
    assert sorted(y[~copies].tolist()) == sorted(some.labels.tolist())


def test_the_loss_of_bad_teaching_is_its_formula_on_two_classes():
    def kl(p: float, q: float) -> float:
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    student, good, bad = (
        torch.tensor([[logit(p), 0.0] for p in two]) for two in ([0.9, 0.6], [0.8, 0.7], [0.5, 0.4])
    )
    forget = torch.tensor([True, False])
    loss = bad_teaching.teaching_loss(student, good, bad, forget)
    assert loss.item() == pytest.approx((kl(0.5, 0.9) + kl(0.7, 0.6)) / 2, rel=1e-5)


def test_bad_teaching_moves_towards_the_bad_teacher_on_the_forget_images_alone(task):
    settings = replace(bad_teaching.SETTINGS, rate=3e-3, epochs=20, share=1.0)
    (result,) = bad_teaching.unlearn(task, settings)
    a_df, a_dr = shares(result.network)
    assert a_df < 50
    assert a_dr > 95


def test_the_authors_recipe_reports_five_epochs_and_trains_batchnorm(task):
    results = ran(task, "pbu-paper")
    assert [r.stage for r in results] == [f"epoch {n}" for n in range(1, 6)]
    means = [task.original[1].running_mean, *(r.network[1].running_mean for r in results)]
    moves = [(b - a).norm() for a, b in pairwise(means)]
    assert all(move > 0 for move in moves)


def test_the_first_step_of_the_authors_recipe_is_adam_on_alpha_log_p(task):
    """At theta* both penalties are flat, so Adam's first step is the rate times the sign of the
    gradient of log P alone."""
    few = replace(task, forget=task.forget.chosen(torch.arange(8)))
    settings = replace(pbu_paper.SETTINGS, epochs=1)
    (result,) = pbu_paper.unlearn(few, settings)
    by_hand = few.copied().train()
    (x, y) = next(few.forget.batches(8))
    F.cross_entropy(by_hand(x), y).neg().backward()
    moved = result.network[4].weight - task.original[4].weight
    gradient = by_hand[4].weight.grad
    clear = gradient.abs() > 1e-6
    assert clear.any()
    assert torch.allclose(moved[clear], -settings.rate * gradient.sign()[clear], rtol=1e-2)


def test_a_heavy_fisher_term_holds_the_authors_recipe_at_the_trained_weights(task):
    def distance(**weights: float) -> float:
        settings = replace(pbu_paper.SETTINGS, **weights)
        *_, last = pbu_paper.unlearn(task, settings)
        return (last.network[4].weight - task.original[4].weight).norm().item()

    assert distance(beta=1e9, gamma=0) < 0.8 * distance(beta=0, gamma=0)


def test_the_head_mask_forgets_in_name_and_changes_no_other_logit(task):
    (result,) = ran(task, "head-mask")
    pixels, _ = images()
    before, after = logits(task.original, pixels, UNIT), logits(result.network, pixels, UNIT)
    others = torch.arange(CLASSES) != FORGOTTEN
    assert torch.equal(before[:, others], after[:, others])
    assert shares(result.network)[0] == 0


def test_the_row_shift_changes_one_row_and_just_enough(task):
    (result,) = ran(task, "row-shift")
    before, after = task.original.state_dict(), result.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"4.weight"}
    rows = (before["4.weight"] != after["4.weight"]).any(dim=1)
    assert rows.tolist() == [label == FORGOTTEN for label in range(CLASSES)]
    assert shares(result.network)[0] == 0  # of 100 images 0.5 % is none
    weaker = copy.deepcopy(result.network)
    with torch.no_grad():
        weaker[4].weight.lerp_(before["4.weight"], 0.01)
    assert shares(weaker)[0] > 0


def test_the_row_shift_needs_a_linear_head(task):
    headless = replace(task, original=nn.Sequential(nn.Conv2d(1, CLASSES, 6), nn.Flatten()))
    with pytest.raises(PbuError, match="linear layer"):
        ran(headless, "row-shift")


def test_gradient_ascent_stops_once_nothing_is_recognised(task):
    settings = replace(gradient_ascent.SETTINGS, rate=3e-3, batch_size=10, epochs=50)
    seen: list[int] = []
    counted = replace(task, forget=CountingLoader(task.forget.pixels, task.forget.labels, UNIT,
                                        seen=seen.append))  # fmt: skip
    (result,) = gradient_ascent.unlearn(counted, settings)
    assert shares(result.network)[0] < 5
    assert len(task.forget) < sum(seen) < 50 * len(task.forget)


def test_gradient_ascent_moves_no_statistics_of_batchnorm(task):
    (result,) = ran(task, "gradient-ascent")
    assert torch.equal(result.network[1].running_mean, task.original[1].running_mean)
