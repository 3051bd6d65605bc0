"""The C++ interface: strict compilers of both standards, with exceptions and without, under the sanitizers."""

from __future__ import annotations

from pathlib import Path

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


def test_types_of_quantized_networks():
    program = toy.chain("copy")
    program.inputs = (Port("x", "uint8", (1, 4), 0.125, 128), Port("flag", "bool", ()), Port("h", "float16", (2,)))
    text = cpp_text(program)
    assert "using input_0_type = std::uint8_t;" in text
    assert "input_0_scale = 0.125f;" in text
    assert "input_0_zero_point = 128;" in text
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
