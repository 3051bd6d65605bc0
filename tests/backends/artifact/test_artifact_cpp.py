"""The C++ interface: strict compilers of both standards, with exceptions and without, under the sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import toy

from irc.backends.artifact.cpp import cpp_text
from irc.backends.artifact.write import write_artifact
from irc.backends.program import Port

STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpp")
    for name in ("toy", "Toy_2"):
        write_artifact(toy.toy("x86-64", name), folder / name, manifest={}, glue_object=toy.glue(name))
    return folder


@pytest.mark.skipif(not toy.runs_natively(), reason="this CPU: builds and runs x86-64 programs")
@pytest.mark.parametrize("options", ["-std=c++17", "-std=c++20", "-std=c++17 -fno-exceptions -fno-rtti"])
def test_program(options, artifacts, tmp_path, tool):
    folders = [
        f"-{flag}{artifacts / name / sub}"
        for name in ("toy", "Toy_2")
        for flag, sub in (("I", "include"), ("L", "lib"))
    ]
    source = Path(__file__).with_name("toy_cpp.cpp")
    sanitizers = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    program = tmp_path / "program"
    tool("g++", *options.split(), *STRICT, *sanitizers, source, *folders, "-ltoy", "-lToy_2", "-lm", "-o", program)
    tool(str(program))


def test_older_standards_are_told(artifacts, need_tool, tmp_path):
    source = tmp_path / "old.cpp"
    source.write_text('#include "toy.hpp"\n')
    command = [need_tool("g++"), "-std=c++14", "-fsyntax-only", f"-I{artifacts / 'toy' / 'include'}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "toy.hpp needs C++17" in done.stderr


def test_types_of_quantized_networks():
    program = toy.chain("copy")
    program.inputs = (Port("x", "uint8", (1, 4), 0.125, 128), Port("flag", "bool", ()), Port("h", "float16", (2,)))
    text = cpp_text(program)
    assert "using input_0_type = std::uint8_t;" in text
    assert "input_0_scale = 0.125f;" in text
    assert "input_0_zero_point = 128;" in text
    assert "static input_0_type quantize_input_0(float real)" in text
    assert "quantize_input_1" not in text
    assert "span<const bool> input_1" in text
    assert "using input_2_type = std::uint16_t;" in text
    assert "@" not in text


@pytest.mark.skipif(not toy.runs_natively(), reason="this CPU: builds x86-64 programs")
def test_a_network_without_inputs_compiles(tmp_path, tool):
    program = toy.chain("copy")
    program.inputs = ()
    write_artifact(program, tmp_path / "net", manifest={}, glue_object=toy.assembled(program), emit={"header", "cpp"})
    (tmp_path / "main.cpp").write_text(
        '#include "net.hpp"\nint f(irc::net_network &n, irc::span<float> y) { return n.run(y); }\n'
    )
    tool("g++", "-std=c++17", *STRICT, "-fsyntax-only", f"-I{tmp_path / 'net' / 'include'}", tmp_path / "main.cpp")


QUANTIZED = """
#include <cmath>
#include <cstdio>
#include "net.hpp"
int main()
{
    using net = irc::net_network;
    float real;
    while (std::fread(&real, sizeof real, 1, stdin) == 1) std::putchar(net::quantize_input_0(real) + 128);
    static_assert(net::dequantize_output_0(3) == -2.0f);
    return net::quantize_input_0(std::nanf("")) == -128 && net::input_0_zero_point == NET_INPUT_0_ZERO_POINT
            && net::output_0_scale == NET_OUTPUT_0_SCALE
        ? 0 : 1;
}
"""


@pytest.mark.skipif(not toy.runs_natively(), reason="this CPU: builds and runs x86-64 programs")
def test_numbers_are_quantized_as_by_irc(tmp_path, tool):
    program = toy.chain("copy")
    scale = float(np.float32(0.0237))
    program.inputs, program.outputs = (Port("x", "int8", (4,), scale, -7),), (Port("y", "uint8", (4,), 0.5, 7),)
    write_artifact(program, tmp_path / "net", manifest={}, glue_object=toy.assembled(program), emit={"header", "cpp"})
    (tmp_path / "main.cpp").write_text(QUANTIZED)
    include, built = f"-I{tmp_path / 'net' / 'include'}", tmp_path / "program"
    tool("g++", "-std=c++17", *STRICT, include, tmp_path / "main.cpp", "-lm", "-o", built)
    ties = (np.arange(-140, 140) + 0.5) * scale
    real = np.concatenate([ties, np.nextafter(np.float32(ties), np.float32(9)), [-1e30, 1e30]]).astype(np.float32)
    found = subprocess.run([built], input=real.tobytes(), capture_output=True, check=True).stdout
    wanted = program.inputs[0].quantization.quantize(real)
    np.testing.assert_array_equal(np.frombuffer(found, np.uint8).astype(int) - 128, wanted)


PLACES = """
#include "net.hpp"
int main()
{
    irc::net_network net;
    for (std::size_t i = 0; i < net.input_0().size(); i++) net.input_0()[i] = 0.5f * static_cast<float>(i);
    if (net.run() != IRC_OK) return 1;
    for (std::size_t i = 0; i < net.output_0().size(); i++)
        if (net.output_0()[i] != 0.5f * static_cast<float>(i)) return 2;
    return 0;
}
"""


@pytest.mark.skipif(not toy.runs_natively(), reason="this CPU: builds and runs x86-64 programs")
def test_inputs_and_outputs_live_in_the_workspace_where_there_are_places(tmp_path, tool):
    program = toy.chain("copy")
    program.workspace_bytes, program.input_places, program.output_places = 512, (0,), (256,)
    write_artifact(program, tmp_path / "net", manifest={}, glue_object=toy.assembled(program))
    (tmp_path / "main.cpp").write_text(PLACES)
    folders = (f"-I{tmp_path / 'net' / 'include'}", f"-L{tmp_path / 'net' / 'lib'}")
    sanitizers = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    main = tmp_path / "main.cpp"
    tool("g++", "-std=c++17", *STRICT, *sanitizers, main, *folders, "-lnet", "-lm", "-o", tmp_path / "program")
    tool(str(tmp_path / "program"))
