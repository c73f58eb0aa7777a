"""Prepared inputs of the demo's digits, for the tests of the pipeline."""

from __future__ import annotations

import pytest

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.inputs.loaded_model import load_model
from pbu_cli.inputs.prepare import UnlearningInputs, prepare_inputs
from pbu_cli.settings import InputOptions


def prepared(digits: DemoFiles, digit: str) -> UnlearningInputs:
    options, log = InputOptions(device="cpu"), InferenceLog()
    loaded = load_model(digits.checkpoint, options, log)
    return prepare_inputs(loaded, [str(digits.train / digit)], options, log, layers="stage")


@pytest.fixture(scope="module")
def threes(digits: DemoFiles) -> UnlearningInputs:
    return prepared(digits, "3")


@pytest.fixture(scope="module")
def eights(digits: DemoFiles) -> UnlearningInputs:
    return prepared(digits, "8")
