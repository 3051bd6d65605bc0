"""Limits of flash and RAM: how they are read, what an error says, and that nothing is written then."""

from __future__ import annotations

from pathlib import Path

import pytest

from irc.cli.main import main
from irc.driver.compile import compile_model
from irc.driver.limits import flash_limit, parse_size, ram_limit, short_name
from irc.driver.options import CompileOptions
from irc.errors import LimitError, OptionError
from irc.targets import get_target


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65536),
        ("64k", 65536),
        ("64K", 65536),
        ("64 kB", 65536),
        ("64KiB", 65536),
        ("1M", 1 << 20),
        ("1.5k", 1536),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "64x", "-1", "0", "1e3", "64 k B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(OptionError, match="--ram cannot be read"):
        parse_size(text, "--ram")


def options(model: Path, kernel_cache: Path, **limits: int) -> CompileOptions:
    target = get_target("native")
    return CompileOptions(model, target, output=model.parent / "out", cache_dir=kernel_cache, verify=False, **limits)  # type: ignore[arg-type]  # ram and flash


def test_too_much_ram(model_file: Path, kernel_cache: Path) -> None:
    with pytest.raises(LimitError) as caught:
        compile_model(options(model_file, kernel_cache, ram=64))
    text = str(caught.value)
    assert "expected at most 64 bytes" in text
    assert "workspace" in text
    assert "context 128" in text
    assert "prune-channels" in text
    assert not (model_file.parent / "out").exists()


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


def test_a_target_may_fix_the_limits(model_file: Path, kernel_cache: Path) -> None:
    from dataclasses import replace

    chosen = options(model_file, kernel_cache)
    fixed = replace(chosen, target=replace(chosen.target, ram_bytes=100, flash_bytes=200))
    assert (ram_limit(chosen), flash_limit(chosen)) == (None, None)
    assert (ram_limit(fixed), flash_limit(fixed)) == (100, 200)
    assert ram_limit(replace(fixed, ram=50)) == 50


def test_names_that_converters_join_are_cut() -> None:
    assert short_name("a/Relu;b/BatchNorm;c/Conv2D") == "c/Conv2D"
