"""Folders for Arduino, Zephyr and ESP-IDF: their files; CMake reads them with stand-ins for the frameworks."""

from __future__ import annotations

import dataclasses

import pytest
import toy

from irc.backends.artifact.layouts import arranged, check_layout, layout_of
from irc.backends.artifact.manifest import read_manifest
from irc.backends.artifact.write import write_artifact
from irc.errors import OptionError
from irc.targets import get_target

PRECOMPILED = {
    "include/net.h": [b"h"],
    "include/net.hpp": [b"hpp"],
    "lib/libnet.a": [b"a"],
    "lib/cmake/net/x.cmake": [b"x"],
}
SOURCE = {"include/net.h": [b"h"], "src/net.c": [b"c"], "lib/cmake/net/x.cmake": [b"x"]}


def placed(layout, target="cortex-m4", files=None):
    """Path -> text of a layout for a small network."""
    program = dataclasses.replace(toy.chain("copy"), target=get_target(target))
    found = arranged(layout, program, PRECOMPILED if files is None else files)
    return {path: b"".join(chunks).decode() for path, chunks in found.items()}


def test_arduino_library():
    files = placed("arduino")
    assert set(files) == {
        *("library.properties", "examples/net_run/net_run.ino", "src/net.h", "src/net.hpp", "src/cortex-m4/libnet.a"),
    }
    properties = dict(line.split("=", 1) for line in files["library.properties"].splitlines())
    assert properties["precompiled"] == "full"
    assert properties["ldflags"] == "-lnet -lm"
    assert all(properties[key] for key in ("name", "version", "author", "maintainer", "sentence", "category", "url"))
    assert "static float input_0[NET_INPUT_0_ELEMENTS];" in files["examples/net_run/net_run.ino"]


def test_arduino_of_chips_without_a_fpu_and_of_source():
    assert "src/cortex-m4/libnet.a" in placed("arduino", "cortex-m4-nofpu")
    assert {"src/esp32c3/libnet.a", "src/esp32c6/libnet.a"} <= set(placed("arduino", "riscv32"))
    source = placed("arduino", "c", SOURCE)
    assert source["src/net.c"] == "c"
    assert "precompiled" not in source["library.properties"]


def test_zephyr_module():
    files = placed("zephyr")
    assert files["zephyr/module.yml"] == "name: net\nbuild:\n  cmake: .\n  kconfig: Kconfig\n"
    assert files["lib/libnet.a"] == "a"
    assert "config IRC_NET\n" in files["Kconfig"]
    assert "zephyr_library_sources(src/net.c)" in placed("zephyr", "c", SOURCE)["CMakeLists.txt"]


def test_esp_idf_component():
    files = placed("esp-idf", "riscv32")
    assert 'add_prebuilt_library(net_irc "lib/libnet.a")' in files["CMakeLists.txt"]
    assert "  - esp32c3\n" in files["idf_component.yml"]
    source = placed("esp-idf", "c", SOURCE)
    assert 'SRCS "src/net.c"' in source["CMakeLists.txt"]
    assert "targets:" not in source["idf_component.yml"]


@pytest.mark.parametrize(
    ("layout", "target", "message"),
    [
        ("esp-idf", "cortex-m4", "--target c"),
        ("arduino", "x86-64", "microcontrollers"),
        ("zephyr", "wasm32", "ELF libraries or C source"),
    ],
)
def test_layouts_for_other_processors_are_refused(layout, target, message):
    with pytest.raises(OptionError, match=message):
        check_layout({layout}, get_target(target))


def test_a_folder_has_one_layout():
    assert layout_of({"archive", "header"}) == ""
    with pytest.raises(OptionError, match="one layout"):
        layout_of({"arduino", "zephyr"})


STAND_INS = {
    "zephyr": (
        "set(CONFIG_IRC_NET y)\nfunction(zephyr_include_directories)\n  include_directories(${ARGN})\nendfunction()\n"
        "function(zephyr_library_import name path)\n  add_library(${name} STATIC IMPORTED GLOBAL)\n"
        "  set_target_properties(${name} PROPERTIES IMPORTED_LOCATION ${path})\n"
        "  target_link_libraries(${name} INTERFACE m)\nendfunction()\ninclude(${MODULE}/CMakeLists.txt)\nset(LIB net)\n"
    ),
    "esp-idf": (
        "set(LIB component)\nset(COMPONENT_LIB component)\n"
        "function(idf_component_register)\n  add_library(component INTERFACE)\n"
        "  target_include_directories(component INTERFACE ${MODULE}/include)\nendfunction()\n"
        "function(add_prebuilt_library name path)\n  add_library(${name} STATIC IMPORTED GLOBAL)\n"
        "  set_target_properties(${name} PROPERTIES IMPORTED_LOCATION ${MODULE}/${path})\nendfunction()\n"
        "include(${MODULE}/CMakeLists.txt)\n"
    ),
}
"""What the frameworks' functions do, as far as this needs."""


@pytest.mark.skipif(not toy.runs_natively(), reason="this CPU: links x86-64 programs")
@pytest.mark.parametrize("layout", STAND_INS)
def test_cmake_files_lead_to_a_program(layout, tmp_path, tool):
    program = toy.chain("copy")
    written = write_artifact(program, tmp_path / "net", manifest={}, glue_object=toy.assembled(program), emit={layout})
    assert "lib/libnet.a" in written["files"]
    assert read_manifest(tmp_path / "net") == written
    (tmp_path / "main.c").write_text('#include "net.h"\nint main(void) { return net_info.n_inputs - 1; }\n')
    (tmp_path / "CMakeLists.txt").write_text(
        f'cmake_minimum_required(VERSION 3.20)\nproject(p C)\nset(MODULE "{tmp_path / "net"}")\n'
        f"{STAND_INS[layout]}add_executable(app main.c)\ntarget_link_libraries(app PRIVATE ${{LIB}})\n"
    )
    tool("cmake", "-S", tmp_path, "-B", tmp_path / "build")
    tool("cmake", "--build", tmp_path / "build")
    tool(str(tmp_path / "build" / "app"))
