"""Folders as embedded frameworks want them: an Arduino library, a Zephyr module, an ESP-IDF component.

Each holds the header, the C++ class, and the static library for the target's processor or, for target `c`, the source.
Arduino CLI "Library specification" (precompiled libraries); Zephyr "Modules (External projects)"; ESP-IDF "Build
System", "Using Prebuilt Libraries with Components".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from irc.backends.artifact import elf
from irc.backends.program import Port, Program
from irc.errors import OptionError
from irc.targets.target import Target

LAYOUTS = ("arduino", "zephyr", "esp-idf")
VERSION = "1.0.0"
"""Of the package; frameworks want one."""

_RISCV_CHIPS = ("esp32c2", "esp32c3", "esp32c6", "esp32h2")
"""What ESP-IDF and Arduino call the chips of Espressif that run rv32imc with soft floats."""
_C_TYPES = {"float32": "float", "float64": "double", "bool": "unsigned char", "float16": "uint16_t"}

Files = dict[str, Sequence[elf.Bytes]]


def layout_of(emit: Collection[str]) -> str:
    """The one layout that is asked for; empty for irc's own. Raises OptionError for two."""
    found = [name for name in LAYOUTS if name in emit]
    if len(found) > 1:
        raise OptionError("a folder has one layout", got=" and ".join(found), hint="compiling once for each")
    return found[0] if found else ""


def check_layout(emit: Collection[str], target: Target) -> None:
    """Raises OptionError where the layout is for other processors."""
    layout = layout_of(emit)
    foreign = sorted({"object", "shared"} & set(emit))
    if layout and foreign:
        raise OptionError(
            f"the folder of {layout} has no place for it", where="--emit", got=foreign[0], hint="compiling once more"
        )
    if layout == "esp-idf" and target.arch not in ("c", "riscv32"):
        raise OptionError(
            "ESP-IDF is for chips with Xtensa and RISC-V cores",
            got=f"target {target.name}",
            hint="--target c (source for all of them) or --target riscv32 (ESP32-C3, C6, H2)",
        )
    if layout == "arduino" and not (target.small or target.arch == "c"):
        raise OptionError(
            "Arduino libraries are for microcontrollers",
            got=f"target {target.name}",
            hint="--target cortex-m4, what your board has, or --target c (source for any board)",
        )
    if layout and target.object_format not in ("elf", "source"):
        raise OptionError(f"--emit {layout} holds ELF libraries or C source", got=f"target {target.name}")


def arranged(layout: str, program: Program, files: Mapping[str, Sequence[elf.Bytes]]) -> Files:
    """`files`, as irc's own folder has them, in the places of `layout`, with what describes them there."""
    name = program.name
    base = {path.rsplit("/", 1)[-1]: chunks for path, chunks in files.items() if "/cmake/" not in path}
    headers = {part: base[part] for part in (f"{name}.h", f"{name}.hpp") if part in base}
    library = base.get(f"lib{name}.a")
    if layout == "arduino":
        texts = _arduino(program, precompiled=library is not None)
        placed = {f"src/{part}": chunks for part, chunks in headers.items()}
        if library is not None:
            placed |= {f"src/{folder}/lib{name}.a": library for folder in _arduino_folders(program.target)}
        else:
            placed[f"src/{name}.c"] = base[f"{name}.c"]
    else:
        texts = (_zephyr if layout == "zephyr" else _esp_idf)(program, precompiled=library is not None)
        placed = {f"include/{part}": chunks for part, chunks in headers.items()}
        if library is not None:
            placed[f"lib/lib{name}.a"] = library
        else:
            placed[f"src/{name}.c"] = base[f"{name}.c"]
    return placed | {path: [text.encode()] for path, text in texts.items()}


def _sentence(program: Program) -> str:
    return f"The neural network {program.name}, compiled by irc for {program.target.name}."


# Arduino


def _arduino_folders(target: Target) -> tuple[str, ...]:
    """The values of build.mcu whose boards take the library."""
    return _RISCV_CHIPS if target.arch == "riscv32" else (target.cpu,)


def _arduino(program: Program, *, precompiled: bool) -> dict[str, str]:
    name = program.name
    properties = {
        "name": name,
        "version": VERSION,
        "author": "irc",
        "maintainer": "irc",
        "sentence": _sentence(program),
        "paragraph": f"Include {name}.h; the example shows a whole sketch. No heap, no other library.",
        "category": "Data Processing",
        "url": "https://onnx.ai",
        "architectures": "*",
        "includes": f"{name}.h",
    }
    if precompiled:
        properties |= {"precompiled": "full", "ldflags": f"-l{name} -lm"}
    return {
        "library.properties": "".join(f"{key}={value}\n" for key, value in properties.items()),
        f"examples/{name}_run/{name}_run.ino": _sketch(program),
    }


def _c_type(port: Port) -> str:
    return _C_TYPES.get(port.dtype, f"{port.dtype}_t")


def _sketch(program: Program) -> str:
    name, upper = program.name, program.name.upper()
    ports = [(f"input_{i}", p) for i, p in enumerate(program.inputs)]
    ports += [(f"output_{i}", p) for i, p in enumerate(program.outputs)]
    arrays = "\n".join(f"static {_c_type(p)} {n}[{upper}_{n.upper()}_ELEMENTS];" for n, p in ports)
    ins = ", ".join(f"input_{i}" for i in range(len(program.inputs))) or "nullptr"
    outs = ", ".join(f"output_{i}" for i in range(len(program.outputs))) or "nullptr"
    return f"""\
// Runs the network {name} again and again, and prints its first output and the time that it took.
#include <{name}.h>

alignas({upper}_WORKSPACE_ALIGN) static unsigned char workspace[{upper}_WORKSPACE_BYTES + 1];
alignas({upper}_WORKSPACE_ALIGN) static unsigned char ram[{upper}_INIT_RAM_BYTES + 1];
{arrays}
static {name}_ctx ctx;

static void stop(int code) {{
  Serial.print("error ");
  Serial.println(code);
  for (;;) delay(1000);
}}

void setup() {{
  Serial.begin(115200);
  int code = {name}_init(&ctx, {upper}_INIT_RAM_BYTES ? ram : nullptr, {upper}_INIT_RAM_BYTES);
  if (code != IRC_OK) stop(code);
}}

void loop() {{
  // Fill the inputs here: from a sensor, a microphone, a camera.
  const void *inputs[] = {{{ins}}};
  void *outputs[] = {{{outs}}};
  unsigned long start = micros();
  int code = {name}_run(&ctx, inputs, outputs, workspace);
  unsigned long end = micros();
  if (code != IRC_OK) stop(code);
  for (size_t i = 0; i < {upper}_OUTPUT_0_ELEMENTS; i++) {{
    Serial.print((double)output_0[i]);
    Serial.print(' ');
  }}
  Serial.print("in ");
  Serial.print(end - start);
  Serial.println(" us");
  delay(1000);
}}
"""


# Zephyr


def _zephyr(program: Program, *, precompiled: bool) -> dict[str, str]:
    name, option = program.name, f"IRC_{program.name.upper()}"
    if precompiled:
        build = f"""\
  zephyr_library_import({name} ${{CMAKE_CURRENT_LIST_DIR}}/lib/lib{name}.a)
"""
    else:
        build = f"""\
  zephyr_library_named({name})
  zephyr_library_sources(src/{name}.c)
"""
    return {
        "zephyr/module.yml": f"name: {name}\nbuild:\n  cmake: .\n  kconfig: Kconfig\n",
        "CMakeLists.txt": f"""\
# {_sentence(program)}
# In the application: list(APPEND ZEPHYR_EXTRA_MODULES /path/to/this/folder) before find_package(Zephyr).
if(CONFIG_{option})
  zephyr_include_directories(${{CMAKE_CURRENT_LIST_DIR}}/include)
{build}endif()
""",
        "Kconfig": f"""\
config {option}
\tbool "{name}: a neural network, compiled by irc for {program.target.name}"
\tdefault y
\tselect REQUIRES_FULL_LIBC
\thelp
\t  Links {name}_init and {name}_run; {name}.h describes them.
""",
    }


# ESP-IDF


def _esp_idf(program: Program, *, precompiled: bool) -> dict[str, str]:
    name = program.name
    if precompiled:
        build = f"""\
idf_component_register(INCLUDE_DIRS "include")
add_prebuilt_library({name}_irc "lib/lib{name}.a")
target_link_libraries(${{COMPONENT_LIB}} INTERFACE {name}_irc m)
"""
        targets = "targets:\n" + "".join(f"  - {chip}\n" for chip in _RISCV_CHIPS)
    else:
        build = f"""\
idf_component_register(SRCS "src/{name}.c" INCLUDE_DIRS "include")
set_source_files_properties("src/{name}.c" PROPERTIES COMPILE_OPTIONS "-O2")
target_link_libraries(${{COMPONENT_LIB}} PUBLIC m)
"""
        targets = ""
    return {
        "CMakeLists.txt": f"# {_sentence(program)}\n{build}",
        "idf_component.yml": (
            f'version: "{VERSION}"\ndescription: {_sentence(program)}\n{targets}dependencies:\n  idf: ">=5.0"\n'
        ),
    }
