"""config.json and metadata: read where they make sense, refused by key where they do not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pbu_cli.errors import CheckpointError
from pbu_cli.models.load import require_buildable
from pbu_cli.models.model_config import Description, describe, metadata_with

TIMM = {
    "architecture": "resnet34",
    "num_classes": 2,
    "label_names": ["cat", "dog"],
    "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "input_size": [3, 64, 48]},
}


def described(folder: Path, config: object, metadata: dict[str, str] | None = None) -> Description:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return describe(folder / "model.safetensors", metadata or {})


def test_a_timm_config_is_read(tmp_path: Path) -> None:
    found = described(tmp_path, TIMM)
    assert replace(found, sources={}) == Description(
        "resnet34", 2, ("cat", "dog"), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), (64, 48)
    )
    assert set(found.sources.values()) == {"config.json"}


def test_the_classes_of_what_it_was_fine_tuned_from_do_not_count(tmp_path: Path) -> None:
    config = {"num_classes": 2, "pretrained_cfg": {"num_classes": 1000}}
    assert described(tmp_path, config).num_classes == 2
    assert described(tmp_path, {"pretrained_cfg": {"num_classes": 1000}}).num_classes is None


def test_metadata_stand_in_and_config_wins(tmp_path: Path) -> None:
    metadata = {"architecture": "resnet18", "mean": "[0.5]", "std": "[0.5]", "other": "x"}
    assert describe(tmp_path / "m.safetensors", metadata).architecture == "resnet18"
    both = described(tmp_path, {"architecture": "resnet34"}, metadata)
    assert (both.architecture, both.mean) == ("resnet34", (0.5,))
    assert (both.sources["architecture"], both.sources["mean"]) == (
        "config.json", "checkpoint metadata",
    )  # fmt: skip
    assert describe(tmp_path / "no" / "m.safetensors", {}) == Description()


def test_what_pbu_recorded_wins_over_config_and_the_metadata_of_others(tmp_path: Path) -> None:
    foreign = {"mean": "[0.1]", "std": "[0.1]", "forgotten": "[1]", "architecture": "resnet18"}
    metadata = metadata_with(foreign, forgotten=[8], mean=[0.5], std=[0.25], input_size=[1, 8, 8])
    config = {"mean": [0.2], "std": [0.2], "input_size": [1, 9, 9], "forgotten": [3],
              "architecture": "resnet34"}  # fmt: skip
    for found, architecture in (
        (describe(tmp_path / "m.safetensors", metadata), "resnet18"),
        (described(tmp_path, config, metadata), "resnet34"),
    ):
        assert (found.mean, found.std, found.size) == ((0.5,), (0.25,), (8, 8))
        assert found.forgotten == (8,)
        assert found.architecture == architecture
    assert described(tmp_path, config).forgotten == ()


def test_what_pbu_writes_it_reads_back(tmp_path: Path) -> None:
    metadata = metadata_with({"author": "x"}, forgotten=[8], mean=[0.5], std=[0.25])
    assert metadata["author"] == "x"
    found = describe(tmp_path / "m.safetensors", metadata)
    assert (found.forgotten, found.mean, found.std) == ((8,), (0.5,), (0.25,))


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{",
        "[" * 100_000,
        "[1]",
        '{"architecture": "resnet34; rm -rf /"}',
        '{"architecture": 3}',
        '{"num_classes": "ten"}',
        '{"num_classes": true}',
        '{"label_names": "cat"}',
        '{"label_names": [1]}',
        '{"mean": "0.5"}',
        '{"mean": [1e999]}',
        '{"mean": [NaN]}',
        '{"std": [0]}',
        '{"std": []}',
        '{"input_size": [3, 224]}',
        '{"input_size": [3, 0, 1000000000]}',
        " " * (1 << 21),
    ],
    ids=lambda config: config[:30],
)
def test_a_config_that_makes_no_sense_is_one_line(tmp_path: Path, config: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        described(tmp_path, config)
    assert "\n" not in str(caught.value)
    assert "config.json" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("resnet34", {"global_pool": "avg", "model_args": {}}),
        ("resnet34", {"global_pool": "fast", "model_args": None}),
        ("vit_b_16", {"global_pool": "token"}),
        ("resnet34", {"model_args": {"in_chans": 1, "drop_path_rate": 0.1, "act_layer": None}}),
        ("resnet34", {"pretrained_cfg": {"global_pool": None}, "global_pool": "avg"}),
    ],
)
def test_a_network_that_timm_builds_as_torchvision_does_is_built(
    tmp_path: Path, name: str, config: object
) -> None:
    require_buildable(described(tmp_path, config), name)


@pytest.mark.parametrize(
    ("name", "config", "shown"),
    [
        ("resnet34", {"global_pool": "max"}, 'config.json: global_pool is "max"'),
        ("resnet34", {"global_pool": ""}, 'config.json: global_pool is ""'),
        ("resnet34", {"global_pool": "token"}, 'config.json: global_pool is "token"'),
        ("vit_b_16", {"global_pool": "avg"}, 'config.json: global_pool is "avg"'),
        ("resnet34", {"pretrained_cfg": {"global_pool": "catavgmax"}}, '"catavgmax"'),
        ("resnet34", {"global_pool": "max", "pretrained_cfg": {"global_pool": "avg"}}, '"max"'),
        ("resnet34", {"global_pool": "max", "pretrained_cfg": {"global_pool": None}}, '"max"'),
        ("resnet34", {"model_args": {"global_pool": "avgmax"}}, 'global_pool is "avgmax"'),
        ("resnet34", {"model_args": {"output_stride": 8}}, '{"output_stride": 8}'),
        ("vit_b_16", {"model_args": {"drop_rate": 0, "qk_norm": True}}, '{"qk_norm": true}'),
        ("resnet34", {"pretrained_cfg": {"model_args": {"act_layer": "silu"}}}, '"silu"'),
    ],
)
def test_a_network_that_timm_builds_otherwise_is_refused(
    tmp_path: Path, name: str, config: object, shown: str
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(shown)) as error:
        require_buildable(described(tmp_path, config), name)
    assert "--arch FILE.py:FUNCTION" in str(error.value)


def test_the_pool_and_the_arguments_in_the_metadata_count_too(tmp_path: Path) -> None:
    for metadata in ({"global_pool": "max"}, {"model_args": '{"act_layer": "silu"}'}):
        with pytest.raises(CheckpointError, match="checkpoint metadata: "):
            require_buildable(describe(tmp_path / "m.safetensors", metadata), "resnet34")


@pytest.mark.parametrize("config", [{"model_args": "x"}, {"global_pool": 3}, {"crop_pct": "x"}])
def test_a_malformed_key_of_timm_is_named(tmp_path: Path, config: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(config))):
        described(tmp_path, config)
