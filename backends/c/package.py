"""The files of an artifact that is C source: header, src/NAME.c and a CMake package that compiles it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from irc.backends.artifact.cpp import cpp_text
from irc.backends.artifact.elf import Bytes, ObjectFile
from irc.backends.artifact.header import header_text
from irc.backends.artifact.storage import storage
from irc.backends.c.source import source_chunks
from irc.backends.program import Program


def source_path(name: str) -> str:
    """Where the source lies in an artifact."""
    return f"src/{name}.c"


def source_files(program: Program, emit: Collection[str]) -> dict[str, list[Bytes]]:
    """Path in the artifact -> contents. The source is written when the library or the object is asked for."""
    name = program.name
    files: dict[str, list[Bytes]] = {}
    if "header" in emit:
        files[f"include/{name}.h"] = [header_text(program).encode()]
    if "cpp" in emit:
        files[f"include/{name}.hpp"] = [cpp_text(program).encode()]
    if "archive" in emit or "object" in emit:
        files[source_path(name)] = [text.encode() for text in source_chunks(program)]
    if "archive" in emit:
        files[f"lib/cmake/{name}/{name}-config.cmake"] = [cmake_config(program).encode()]
    return files


def source_storage(program: Program, files: dict[str, list[Bytes]]) -> dict[str, Any]:
    """The "storage" of the manifest. How many bytes of code there are is for the compiler to say: "others" is what the
    text takes beyond the bytes of the weights."""
    text = sum(len(memoryview(chunk)) for chunk in files.get(source_path(program.name), []))
    found = storage(program, ObjectFile(0), text)
    found["sections"] = {"source text": text}
    return found


def cmake_config(program: Program) -> str:
    """lib/cmake/NAME/NAME-config.cmake: `find_package(NAME)` compiles the source as the target NAME::NAME."""
    name = program.name
    return f"""\
# find_package({name}) with the artifact's folder in CMAKE_PREFIX_PATH, then target_link_libraries(app {name}::{name})
if(TARGET {name}::{name})
  return()
endif()
get_filename_component(_irc_prefix "${{CMAKE_CURRENT_LIST_DIR}}/../../.." ABSOLUTE)
add_library({name}_irc STATIC "${{_irc_prefix}}/src/{name}.c")
set_target_properties({name}_irc PROPERTIES OUTPUT_NAME {name} POSITION_INDEPENDENT_CODE ON)
target_include_directories({name}_irc PUBLIC "${{_irc_prefix}}/include")
if(UNIX)
  target_link_libraries({name}_irc PUBLIC m)
endif()
add_library({name}::{name} ALIAS {name}_irc)
unset(_irc_prefix)
"""
