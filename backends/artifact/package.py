"""How build systems find a network: a CMake package and a pkg-config file. Both work wherever the artifact is moved."""

from __future__ import annotations

from irc.backends.program import Program


def _libraries(program: Program) -> list[str]:
    """What the network is linked with: libm, and the threads of its pool. Windows has libm in its C library."""
    if program.target.object_format == "coff":
        return []
    return ["m", "pthread"] if program.threads > 1 else ["m"]


def cmake_config(program: Program) -> str:
    """lib/cmake/NAME/NAME-config.cmake: `find_package(NAME)` gives the imported target NAME::NAME."""
    name = program.name
    return f"""\
# find_package({name}) with the artifact's folder in CMAKE_PREFIX_PATH, then target_link_libraries(app {name}::{name})
if(TARGET {name}::{name})
  return()
endif()
get_filename_component(_irc_prefix "${{CMAKE_CURRENT_LIST_DIR}}/../../.." ABSOLUTE)
add_library({name}::{name} STATIC IMPORTED)
set_target_properties({name}::{name} PROPERTIES
  IMPORTED_LOCATION "${{_irc_prefix}}/lib/lib{name}.a"
  IMPORTED_LINK_INTERFACE_LANGUAGES "C"
  INTERFACE_INCLUDE_DIRECTORIES "${{_irc_prefix}}/include"
  INTERFACE_LINK_LIBRARIES "{";".join(_libraries(program))}")
unset(_irc_prefix)
"""


def pkg_config(program: Program) -> str:
    """lib/pkgconfig/NAME.pc."""
    name = program.name
    return f"""\
prefix=${{pcfiledir}}/../..
libdir=${{prefix}}/lib
includedir=${{prefix}}/include

Name: {name}
Description: the neural network {name}, compiled by irc for {program.target.name}
Version: 1
Cflags: -I${{includedir}}
Libs: -L${{libdir}} {" ".join(f"-l{library}" for library in (name, *_libraries(program)))}
"""
