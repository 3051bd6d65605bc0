"""Flash and RAM of the manifest, beside what `size` and a painted stack on an emulated board show."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from irc.backends.artifact.footprint import Footprint, footprint
from irc.backends.artifact.link import link, object_chunks
from irc.backends.artifact.machines import missing_tools
from irc.backends.artifact.qemu import Emulated
from irc.backends.program import Program
from irc.driver.compile import compile_model
from irc.driver.options import CompileOptions
from irc.driver.runners import glue_object
from irc.targets import get_target

SHARE = 0.02
"""By how much a figure may be above what is shown: paths that this input does not take, allowances for functions of the
C library. None may be below."""
BOARDS = ("cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")
TWINS = ("pretrainedResnet_quant_qdq", "vww_96_int8_qdq", "kws_ref_model_qdq", "ad01_int8_qdq")
TIES = ("ad01_int8_qdq", "cortex-m3")
"""The deepest function of this network is called where a sum lies on a tie, which no input that was tried gives: 28
bytes of 964 that nothing shows."""


def built(options: CompileOptions) -> tuple[Program, bytes, Footprint, bytes]:
    """The program, its glue object, its footprint and its object file."""
    program = compile_model(options).program
    assert program is not None
    glue = glue_object(program, options.cache_dir)
    linked = link(program, glue)
    assert not isinstance(linked, bytes)
    return program, glue, footprint(program, linked), b"".join(bytes(c) for c in object_chunks(linked))


def options_of(model: Path, target: str, cache: Path) -> CompileOptions:
    # limits, however wide, make the driver look for the stack
    limit = 1 << 30
    return CompileOptions(
        model,
        get_target(target),
        name="net",
        verify=False,
        stop_after="kernels",
        cache_dir=cache,
        ram=limit,
        flash=limit,
    )


def digits_options(digits: Path, target: str, cache: Path) -> CompileOptions:
    plain = options_of(digits / "digits.onnx", target, cache)
    return replace(plain, passes="speed", calibration=digits / "digits_calibration.npz")


def check_ram(options: CompileOptions) -> None:
    program, glue, found, _ = built(options)
    rng = np.random.default_rng(0)
    feed = {}
    for port in program.inputs:
        bytes_ = "int" in port.dtype
        feed[port.name] = (rng.integers(-128, 128, port.shape) if bytes_ else rng.random(port.shape)).astype(port.dtype)
    with Emulated(program, glue) as network:
        network.run(feed, inside=True)
        assert network.stack_bytes is not None
        shown = program.workspace_bytes + found.context + network.stack_bytes + found.statics
    assert found.stack is not None
    assert network.stack_bytes <= found.stack
    assert shown <= found.ram <= shown * (1 + SHARE)


def check_flash(options: CompileOptions, folder: Path) -> None:
    _, _, found, data = built(options)
    (folder / "net.o").write_bytes(data)
    text = subprocess.run([size_tool(options.target.name), str(folder / "net.o")], capture_output=True, text=True)
    flash, initialised, zeroed = map(int, re.findall(r"\d+", text.stdout.splitlines()[1])[:3])
    assert flash <= found.flash <= flash * (1 + SHARE)
    assert (initialised, zeroed) == (0, 0) == (found.statics, 0)


def size_tool(target: str) -> str:
    return get_target(target).linker.removesuffix("gcc") + "size"


def _skip_without(target: str, *, board: bool) -> None:
    tool = size_tool(target)
    lacks = missing_tools(get_target(target)) if board else "" if shutil.which(tool) else f"not found: {tool}"
    if lacks:
        pytest.skip(lacks)


@pytest.mark.parametrize("target", BOARDS)
def test_ram_of_the_example(target: str, digits_dir: Path, kernel_cache: Path) -> None:
    _skip_without(target, board=True)
    check_ram(digits_options(digits_dir, target, kernel_cache))


@pytest.mark.parametrize("target", [*BOARDS, "riscv32"])
def test_flash_of_the_example(target: str, digits_dir: Path, kernel_cache: Path, tmp_path: Path) -> None:
    _skip_without(target, board=False)
    check_flash(digits_options(digits_dir, target, kernel_cache), tmp_path)


@pytest.mark.parametrize(
    ("model", "target"),
    [(m, t) for m in TWINS for t in ("cortex-m4", "cortex-m55", "cortex-m3") if (m, t) != TIES],
)
def test_ram_of_real_networks(model: str, target: str, data_dir: Path, kernel_cache: Path) -> None:
    _skip_without(target, board=True)
    check_ram(options_of(data_dir / "models" / f"{model}.onnx", target, kernel_cache))


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m55", "riscv32"])
@pytest.mark.parametrize("model", TWINS)
def test_flash_of_real_networks(model: str, target: str, data_dir: Path, kernel_cache: Path, tmp_path: Path) -> None:
    _skip_without(target, board=False)
    check_flash(options_of(data_dir / "models" / f"{model}.onnx", target, kernel_cache), tmp_path)
