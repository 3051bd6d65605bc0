"""Instructions that are estimated from the code, beside what emulators count."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from instructions import compiled_plugin, one_run

from irc.backends.artifact.machines import missing_tools
from irc.backends.artifact.qemu import Emulated
from irc.driver.compile import compile_model
from irc.driver.options import CompileOptions
from irc.driver.runners import glue_object
from irc.targets import get_target

SHARE = 0.05
"""Branches that depend on data are guessed, the library's functions have a fixed cost, and the count has some thousand
instructions of the driver's own, which hand over the sample. Most figures are within 1 %."""
LARGE_SHARE = 0.08
"""Sparse kernels run as often as there are blocks that are not zero, which the code does not say."""
TARGETS = ("cortex-m0plus", "cortex-m4", "cortex-m55", "riscv32", "neoverse-v1", "armv7")


def check(options: CompileOptions, plugin: str, share: float) -> None:
    program = compile_model(options).program
    assert program is not None
    assert program.instructions is not None
    rng = np.random.default_rng(0)
    feed = {}
    for port in program.inputs:
        bytes_ = "int" in port.dtype
        feed[port.name] = (rng.integers(-100, 100, port.shape) if bytes_ else rng.random(port.shape)).astype(port.dtype)
    with Emulated(program, glue_object(program, options.cache_dir)) as network:
        assert program.instructions == pytest.approx(one_run(network, feed, plugin), rel=share)


def options_of(model: Path, target: str, cache: Path) -> CompileOptions:
    return CompileOptions(model, get_target(target), name="net", verify=False, stop_after="kernels", cache_dir=cache)


def _skip_without(target: str) -> None:
    lacks = missing_tools(get_target(target)) or ("" if shutil.which("gcc") else "not found: gcc")
    if lacks:
        pytest.skip(lacks)


@pytest.mark.parametrize("target", TARGETS)
def test_the_example(target: str, digits_dir: Path, kernel_cache: Path, tmp_path: Path) -> None:
    _skip_without(target)
    options = options_of(digits_dir / "digits.onnx", target, kernel_cache)
    options = replace(options, passes="speed", calibration=digits_dir / "digits_calibration.npz")
    check(options, compiled_plugin(tmp_path), SHARE)


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m55", "neoverse-v1"])
def test_the_example_in_floats(target: str, digits_dir: Path, kernel_cache: Path, tmp_path: Path) -> None:
    _skip_without(target)
    check(options_of(digits_dir / "digits.onnx", target, kernel_cache), compiled_plugin(tmp_path), SHARE)


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m55", "riscv32", "neoverse-v1"])
@pytest.mark.parametrize(
    "model", ["pretrainedResnet_quant_qdq", "vww_96_int8_qdq", "kws_ref_model_qdq", "ad01_int8_qdq"]
)
def test_real_networks(model: str, target: str, data_dir: Path, kernel_cache: Path, tmp_path: Path) -> None:
    _skip_without(target)
    share = LARGE_SHARE if model.startswith("vww") else SHARE
    check(options_of(data_dir / "models" / f"{model}.onnx", target, kernel_cache), compiled_plugin(tmp_path), share)
