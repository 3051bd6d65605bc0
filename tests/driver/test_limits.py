"""Limits of flash and RAM: how they are read, what an error says, and that nothing is written then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import irc
from irc.backends.artifact.footprint import ram_alone
from irc.backends.program import Blob, Port, Program
from irc.cli.main import main
from irc.driver.compile import compile_model
from irc.driver.limits import _ram_error, flash_limit, ram_limit, short_name
from irc.driver.options import CompileOptions
from irc.errors import LimitError, OptionError
from irc.targets import get_target


def options(model: Path, kernel_cache: Path, **limits: int) -> CompileOptions:
    target = get_target("native")
    return CompileOptions(model, target, output=model.parent / "out", cache_dir=kernel_cache, verify=False, **limits)  # type: ignore[arg-type]  # ram and flash


def test_too_much_ram(model_file: Path, kernel_cache: Path) -> None:
    with pytest.raises(LimitError) as caught:
        compile_model(options(model_file, kernel_cache, ram=192))
    text = str(caught.value)
    assert "expected at most 192 bytes" in text
    assert "workspace" in text
    assert "context 128" in text
    assert "prune-channels" in text
    assert not (model_file.parent / "out").exists()


def test_no_network_is_small_enough_for_the_context_alone(model_file: Path, kernel_cache: Path) -> None:
    with pytest.raises(LimitError, match="context and stack alone take 128 bytes") as caught:
        compile_model(options(model_file, kernel_cache, ram=128))
    assert "prune-channels" not in str(caught.value)


def test_inputs_in_the_workspace_may_be_smaller() -> None:
    image = Port("x", "float32", (1, 64))
    weights = (Blob(0, np.zeros(8, np.int8)),)
    program = Program("net", get_target("cortex-m4"), (image,), (), (), {}, weights, 8, 256, input_places=(0,))
    with pytest.raises(LimitError, match=r"--io int8.*takes 256 bytes"):
        raise _ram_error(program, ram_alone(program), 128)


def test_c_source_is_held_to_what_is_known(model_file: Path, kernel_cache: Path) -> None:
    """Code and stack are the C compiler's; the weights are in flash whatever it does."""
    chosen = replace(options(model_file, kernel_cache, flash=1), target=get_target("c"))
    with pytest.raises(LimitError, match="more flash than it may use"):
        compile_model(chosen)
    notes = compile_model(replace(chosen, ram=1 << 20, flash=1 << 20)).report.notes
    assert any("without the stack" in note for note in notes)
    assert any("bytes of weights alone" in note for note in notes)


def test_too_much_flash(model_file: Path, kernel_cache: Path) -> None:
    whole = compile_model(options(model_file, kernel_cache)).manifest["memory"]["flash"]
    limit = whole["total"] - 1
    with pytest.raises(LimitError) as caught:
        compile_model(options(model_file, kernel_cache, flash=limit))
    text = str(caught.value)
    assert f"expected at most {limit} bytes" in text
    assert f"weights {whole['weights']}" in text
    assert "1 too many" in text
    assert "--passes quantize" in text
    compile_model(options(model_file, kernel_cache, flash=whole["total"]))


def test_code_alone_too_large(model_file: Path, kernel_cache: Path) -> None:
    with pytest.raises(LimitError, match="its code alone takes"):
        compile_model(options(model_file, kernel_cache, flash=16))


def test_the_command_line_has_an_exit_code_of_its_own(
    model_file: Path, kernel_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = model_file.parent / "out"
    arguments = ["compile", str(model_file), "-o", str(out), "--no-verify", "-q", "--cache-dir", str(kernel_cache)]
    assert main([*arguments, "--flash", "1k"]) == 4
    assert "more flash than it may use" in capsys.readouterr().err
    assert not out.exists()
    assert main([*arguments, "--ram", "2x"]) == 2
    assert main([*arguments, "--ram", "1M", "--flash", "1M"]) == 0


def test_sizes_from_python(model_file: Path, kernel_cache: Path) -> None:
    out = model_file.parent / "out"
    with pytest.raises(LimitError, match="expected at most 1024 bytes"):
        irc.compile(model_file, output=out, cache_dir=kernel_cache, verify=False, flash="1k")
    with pytest.raises(OptionError, match="ram: the size cannot be read"):
        irc.compile(model_file, output=out, cache_dir=kernel_cache, ram="2x")


def test_a_target_may_fix_the_limits(model_file: Path, kernel_cache: Path) -> None:
    chosen = options(model_file, kernel_cache)
    fixed = replace(chosen, target=replace(chosen.target, ram_bytes=100, flash_bytes=200))
    assert (ram_limit(chosen), flash_limit(chosen)) == (None, None)
    assert (ram_limit(fixed), flash_limit(fixed)) == (100, 200)
    assert ram_limit(replace(fixed, ram=50)) == 50


def test_names_that_converters_join_are_cut() -> None:
    assert short_name("a/Relu;b/BatchNorm;c/Conv2D") == "c/Conv2D"
