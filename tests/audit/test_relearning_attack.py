"""Relearning on networks small enough to know what an attacker can do with them."""

import copy
import math

import pytest
import torch
from torch import nn

from pbu_cli.audit.relearning_attack import Attacker, attack, best_bias, relearn, tune

FORGOTTEN = torch.tensor([True, False, False])


def every_bias(forget, retain, forgotten, floor):
    """The oracle: try a shift between every two at which an answer turns."""
    steps = torch.linspace(-40, 40, 4001)
    best = math.nan
    for t in steps.tolist():
        shift = t * forgotten.float()
        a_df, a_dr = (
            100 * ((z + shift).argmax(1) == labels).double().mean().item()
            for z, labels in (forget, retain)
        )
        if a_dr >= floor - 1e-9 and not best >= a_df:
            best = a_df
    return best


@pytest.mark.parametrize("floor", [0.0, 20.0, 45.0, 60.0, 99.0])
@pytest.mark.parametrize("classes", [1, 2])
def test_the_best_bias_is_the_best_of_all_biases(floor, classes):
    generator = torch.Generator().manual_seed(classes)
    forgotten = torch.arange(5) < classes
    forget = 3 * torch.randn(60, 5, generator=generator), torch.arange(60) % classes
    retain = 3 * torch.randn(80, 5, generator=generator), classes + torch.arange(80) % (5 - classes)
    retain[0][range(80), retain[1]] += 2
    found, wanted = (f(forget, retain, forgotten, floor) for f in (best_bias, every_bias))
    assert found == pytest.approx(wanted, nan_ok=True)


def test_no_bias_helps_where_answers_are_no_numbers():
    broken = torch.full((4, 3), math.nan), torch.zeros(4, dtype=torch.long)
    sound = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
    assert math.isnan(best_bias(broken, sound, FORGOTTEN, 0.0))
    assert math.isnan(best_bias(sound, broken, FORGOTTEN, 0.0))


def prepared(n=300, seed=0):
    """Three clouds in the plane; class 0 is the forgotten one. LabelledImages, labels, by part."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[4.0, 4.0], [-4.0, 4.0], [0.0, -4.0]])
    labels = torch.arange(n) % 3
    x = centres[labels] + torch.randn(n, 2, generator=generator)
    gone = labels == 0
    return (x[gone], labels[gone]), (x[~gone], labels[~gone])


def linear(weight, bias):
    model = nn.Sequential(nn.Linear(2, 3))
    model[0].weight.data, model[0].bias.data = torch.tensor(weight), torch.tensor(bias)
    return model.eval()


HIDDEN = linear([[4.0, 4.0], [-4.0, 4.0], [0.0, -4.0]], [-1000.0, -16.0, -8.0])
# To this one, which looks at the height alone, class 0 is class 1.
BLIND = linear([[0.0, 0.0], [0.0, 4.0], [0.0, -4.0]], [-50.0, 0.0, 0.0])


def test_a_class_hidden_behind_its_bias_is_back_without_a_step():
    found = relearn(HIDDEN, *prepared(), FORGOTTEN)
    assert found.curve[0] > 99
    assert found.best == max(found.curve.values())
    assert 99 < found.interval[0] <= found.best <= found.interval[1]


def test_a_head_that_does_not_know_the_class_has_to_learn_it():
    found = relearn(BLIND, *prepared(), FORGOTTEN)
    assert found.curve[0] < 30
    assert found.best > 90
    assert all("bias alone" not in way for way in found.ways)


def test_the_interval_is_of_the_mean_over_draws():
    found = relearn(BLIND, *prepared(), FORGOTTEN, steps=(0, 10))
    low, high = found.interval
    assert found.lowest < low < found.best < high < found.highest
    alone = relearn(BLIND, *prepared(), FORGOTTEN, steps=(0, 10), draws=1)
    assert alone.interval == (alone.best, alone.best)  # one draw says nothing of others


def test_the_network_attacked_stays_as_it_is_and_gets_no_gradients():
    model = copy.deepcopy(BLIND)
    relearn(model, *prepared(), FORGOTTEN, draws=1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, BLIND.state_dict()[name])
    assert all(p.grad is None for p in model.parameters())


def test_images_trained_on_do_not_count_and_seeds_decide_which():
    forget, retain = prepared()
    runs = [relearn(BLIND, forget, retain, FORGOTTEN, seed=seed, draws=1) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0].curve != runs[2].curve
    assert relearn(BLIND, (forget[0][:19], forget[1][:19]), retain, FORGOTTEN) is None


def test_an_attacker_that_ruins_the_rest_gains_nothing_by_it():
    """At this rate one step is enough to lose the retained classes."""
    forget, retain = prepared()
    held = forget[0][:10], forget[1][:10]
    wild = [Attacker("sgd", 1e6)]
    curve, way = attack(BLIND, held, forget, retain, FORGOTTEN, wild, steps=(0, 1, 2))
    assert way == "bias alone"
    assert curve[0] == curve[1] == curve[2]


def test_the_curve_never_falls_and_images_may_be_prepared_by_the_batch():
    forget, retain = prepared()
    plain = relearn(BLIND, forget, retain, FORGOTTEN)
    values = list(plain.curve.values())
    assert values == sorted(values)
    halved = (forget[0] / 2, forget[1]), (retain[0] / 2, retain[1])
    assert relearn(BLIND, *halved, FORGOTTEN, prepare=lambda x: 2 * x) == plain


def test_a_masked_network_is_held_to_what_it_answered_masked():
    """Unmasked, the class takes all retained images, and so A_Dr - 5 would allow anything."""
    loud = copy.deepcopy(BLIND)
    loud[0].bias.data[0] = 1000
    forget, retain = prepared()
    free = attack(loud, forget, forget, retain, FORGOTTEN, [], masked=False)[0][0]
    held = attack(loud, forget, forget, retain, FORGOTTEN, [], masked=True)[0][0]
    assert free == 100
    assert held < 30


def test_tuning_leaves_running_statistics_alone():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    forget, _ = prepared()
    ((_, tuned),) = tune(model, Attacker("adam", 1e-2), (forget[0][:10], forget[1][:10]), (3,))
    assert torch.equal(tuned[1].running_mean, model[1].running_mean)
    assert not torch.equal(tuned[0].weight, model[0].weight)
