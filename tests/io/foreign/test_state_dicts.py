"""Training programs' files: the network is found in them, and two of them are never one."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import io
import pathlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pbu_cli.errors import CheckpointError, InvalidUsage
from pbu_cli.io.foreign.state_dicts import WRAPPERS
from pbu_cli.io.torch_pickle import Unpickled, unpickle

NETWORK = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
STATE = dict(NETWORK.state_dict())


def doubled(prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: tensor * 2 for name, tensor in STATE.items()}


def read(content: Any, state_dict: str | None = None) -> Unpickled:
    file = io.BytesIO()
    torch.save(content, file)
    return unpickle(Path("m.pt"), bytearray(file.getvalue()), state_dict)


@pytest.mark.parametrize("key", [*WRAPPERS, "my_net"])
def test_a_state_dict_is_found_under_its_key(key: str) -> None:
    found = read({"epoch": 3, key: STATE, "best": torch.tensor(76.1), "classes": ["a", "b"]})
    assert (found.key, found.others) == (key, ())
    assert found.tensors.keys() == STATE.keys()


def test_a_state_dict_is_found_two_levels_down() -> None:
    assert read({"ema": {"decay": 0.999, "module": STATE}}).key == "ema.module"


class Colour(enum.Enum):
    RED = "red"


class Whole(enum.IntFlag):
    ONE = 1


def omegaconf_like() -> Any:
    """An object of a class that is gone when the file is read, with attributes and items."""
    made = argparse.Namespace(_metadata=argparse.Namespace(ref_type=Any), _content={"lr": 0.1})
    made.itself = made
    return made


SETTINGS = {
    "args": argparse.Namespace(lr=0.1, data=pathlib.PurePosixPath("/data"), device="cuda"),
    "path": pathlib.Path("/data"),
    "counts": collections.defaultdict(list, {"a": [1]}),
    "default": collections.defaultdict(),
    "hyper_parameters": omegaconf_like(),
    "loss": np.float64(0.3),
    "curve": np.arange(3.0),
    "dtype": np.dtype("float32"),
    "colour": Colour.RED,
    "flag": Whole.ONE,
    "time": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
    "queue": collections.deque([1, 2], maxlen=4),
    "names": frozenset({1}),
    "optimizer": torch.optim.Adam(NETWORK.parameters()).state_dict(),
    "scheduler": torch.optim.lr_scheduler.LambdaLR,
    "type": type(None),
    "transforms": NETWORK,
    "version": torch.__version__,
    "keys": {(3, 3): 1, Colour.RED: 2, 2**70: 3, None: 4},
    "device": torch.device("cpu"),
    "generator": torch.get_rng_state(),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_beside_the_network_are_passed_over(name: str, protocol: int) -> None:
    file = io.BytesIO()
    torch.save({name: SETTINGS[name], "model": STATE}, file, pickle_protocol=protocol)
    found = unpickle(Path("m.pt"), bytearray(file.getvalue()))
    assert found.key == "model"
    assert all(torch.equal(tensor, STATE[n]) for n, tensor in found.tensors.items())


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"state_dict": STATE, "state_dict_ema": doubled()}, ["state_dict", "state_dict_ema"]),
        ({"model": STATE, "model_ema": doubled()}, ["model", "model_ema"]),
        ({"model": STATE, "model_ema": doubled("module.")}, ["model", "model_ema"]),
        ({"model": STATE, "best": doubled()}, ["model", "best"]),
        ({"model": STATE, "swa": {**doubled("module."), "n": torch.tensor(1)}}, ["model", "swa"]),
        ({"state_dict": STATE, "callbacks": {"EMA": {"shadow": {"0.weight": STATE["0.weight"],
          "2.weight": STATE["2.weight"]}}}}, ["state_dict", "callbacks.EMA.shadow"]),
        ({"teacher": STATE, "student": {"a.weight": torch.ones(2, 2)}}, ["teacher", "student"]),
        ({"net_a": STATE, "net_b": {"a.weight": torch.ones(2, 2)}}, ["net_a", "net_b"]),
    ],
)  # fmt: skip
def test_two_state_dicts_are_never_chosen_from_in_silence(content: Any, keys: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r"holds 2 state dicts: .*--state-dict KEY") as caught:
        read(content)
    assert all(f"{key} (" in str(caught.value) for key in keys)
    for key in keys:
        found = read(content, key)
        assert found.key == key
        assert found.others == tuple(other for other in keys if other != key)
        inner = content
        for part in key.split("."):
            inner = inner[part]
        assert all(torch.equal(found.tensors[name], inner[name]) for name in inner)


def test_a_key_that_the_file_lacks_is_a_wrong_flag() -> None:
    with pytest.raises(InvalidUsage, match=r"--state-dict ema: .*expected one of: model \(9 tens"):
        read({"model": STATE}, "ema")


def test_a_file_that_is_one_state_dict_ignores_the_flag() -> None:
    """The output of a run is such a file, and is evaluated beside its original."""
    assert read(STATE, "model_ema").tensors.keys() == STATE.keys()


def test_moments_of_an_optimizer_and_small_tensors_are_no_networks() -> None:
    moments = {name: {"exp_avg": torch.ones(2, 2)} for name in STATE}
    found = read({"model": STATE, "optimizer": {"state": moments}, "meter": {"n": torch.ones(3)}})
    assert (found.key, found.others) == ("model", ())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"model": NETWORK, "epoch": 3}, "an object of torch.nn.modules.container.Sequential"),
        (NETWORK, "which only its own code can read.*torch.save"),
        ({"epoch": 3}, "got epoch among 1 entries, which is no tensor but int"),
        ({"model": {**STATE, "0.weight": STATE["0.weight"].numpy()}}, "no tensor but numpy"),
        ({"model": {**STATE, "x": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}},
         "x is not a plain tensor of real numbers but a quantized tensor"),
        ({(3, 3): torch.ones(1)}, "got a tuple as a key among 1 entries, which is no name"),
        ({}, "got nothing among 0 entries"),
    ],
)  # fmt: skip
def test_a_file_without_a_state_dict_says_what_it_holds(content: Any, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        read(content)


def test_dictionaries_in_themselves_and_in_many_places_are_looked_at_once() -> None:
    inner: dict[str, Any] = {"a": 1}
    for _ in range(50):
        inner = {f"k{k}": inner for k in range(50)}
    inner["self"] = inner
    assert read({"settings": inner, "model": STATE}).key == "model"
