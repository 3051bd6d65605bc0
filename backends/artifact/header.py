"""include/NAME.h: the C interface of one network, C89 and C++, with its documentation."""

from __future__ import annotations

from irc.backends.artifact import interface as abi
from irc.backends.program import Port, Program

_SHARED = """\
/* Shared by all networks of irc: several such headers may be included in one program. */
#ifndef IRC_ABI_VERSION
#define IRC_ABI_VERSION @ABI@

/* What the functions return. */
@ERRORS@

/* Element types: the numbers of ONNX's TensorProto.DataType. */
#define IRC_FLOAT32 1
#define IRC_UINT8 2
#define IRC_INT8 3
#define IRC_UINT16 4
#define IRC_INT16 5
#define IRC_INT32 6
#define IRC_INT64 7
#define IRC_BOOL 9
#define IRC_FLOAT16 10
#define IRC_FLOAT64 11
#define IRC_UINT32 12
#define IRC_UINT64 13
#define IRC_BFLOAT16 16

/* An input or output: a C-contiguous array of `rank` extents `dims`, `bytes` long.
   When `quantized` is not 0, an element q stands for (q - zero_point) * scale. */
typedef struct irc_tensor_info {
    const char *name;
    int dtype;
    int rank;
    const size_t *dims;
    size_t bytes;
    int quantized;
    float scale;
    int zero_point;
    int reserved;
} irc_tensor_info;

/* The facts of a network, for programs that work with any network. */
typedef struct irc_network_info {
    int abi_version;
    unsigned int interface_hash;
    const char *name;
    size_t ctx_bytes;
    size_t workspace_bytes;
    size_t workspace_align;
    size_t init_ram_bytes;
    int n_inputs;
    int n_outputs;
    const irc_tensor_info *inputs;
    const irc_tensor_info *outputs;
} irc_network_info;

/* A share of the work: part `part` (from 0) of `parts`. */
typedef void (*irc_task)(void *data, int part, int parts);

/* A parallel for loop of the caller: calls task(data, p, parts) once for each p in 0 .. parts - 1, in any order and
   on any threads, and returns when all calls have returned. Parts write to disjoint memory. */
typedef void (*irc_parallel_for)(void *user, irc_task task, void *data, int parts);

#elif IRC_ABI_VERSION != @ABI@
#error "headers of different versions of irc's C interface in one program: compile the models again"
#endif
"""

_TEMPLATE = """\
/* @NAME@: a neural network, compiled by irc for @TARGET@.

   Inputs
@INPUTS@
   Outputs
@OUTPUTS@

   Use:
       @NAME@_ctx ctx;
       const void *inputs[@IN_ARRAY@];   (pointers to the input arrays, in the order above)
       void *outputs[@OUT_ARRAY@];
       void *workspace;          (@UPPER@_WORKSPACE_BYTES bytes at a multiple of @UPPER@_WORKSPACE_ALIGN)
@RAM_LINE@       if (@NAME@_init(&ctx, @INIT@) != IRC_OK) ...
       if (@NAME@_run(&ctx, inputs, outputs, workspace) != IRC_OK) ...
       @NAME@_deinit(&ctx);

   @PROMISE@ */
#ifndef IRC_@NAME@_H
#define IRC_@NAME@_H

#include <stddef.h>

@SHARED@
#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of workspace that @NAME@_run needs; none if 0 (then it may be null). */
#define @UPPER@_WORKSPACE_BYTES @WORKSPACE@
/* The workspace, and the RAM of @NAME@_init, start at a multiple of this many bytes. */
#define @UPPER@_WORKSPACE_ALIGN @ALIGN@
/* Bytes of RAM that @NAME@_init needs; none if 0 (then it may be null). */
#define @UPPER@_INIT_RAM_BYTES @RAM@
@STACK@/* Threads of the pool that is compiled in; 1 when there is none. */
#define @UPPER@_THREADS @THREADS@
/* Numbers of inputs and outputs. */
#define @UPPER@_INPUTS @N_INPUTS@
#define @UPPER@_OUTPUTS @N_OUTPUTS@
@PORTS@
/* Changes whenever a header and a library do not belong together. */
#define @UPPER@_INTERFACE @HASH@U

/* What a call needs to know. Its contents belong to the library. Any number of contexts may exist. */
typedef struct @NAME@_ctx {
    void *reserved[@WORDS@];
} @NAME@_ctx;

/* Prepares `ctx`. `ram` is kept by the context and must outlive it; its contents belong to the library.@DECODES@
   Returns IRC_OK, IRC_ERROR_NULL, IRC_ERROR_RAM, IRC_ERROR_ALIGN, @DAMAGED@or IRC_ERROR_VERSION when this header
   and the library come from different compilations. */
int @NAME@_init(@NAME@_ctx *ctx, void *ram, size_t ram_bytes);
int @NAME@_init_checked(@NAME@_ctx *ctx, void *ram, size_t ram_bytes, unsigned int interface_hash);
#define @NAME@_init(ctx, ram, ram_bytes) @NAME@_init_checked((ctx), (ram), (ram_bytes), @UPPER@_INTERFACE)

/* Ends what @NAME@_init began@JOINS@. The context cannot be used any more, and its RAM is free.
   No call may be under way. Returns IRC_OK, IRC_ERROR_NULL or IRC_ERROR_UNINITIALISED. */
int @NAME@_deinit(@NAME@_ctx *ctx);
@POOL@@LEVELS@
/* Optional, after @NAME@_init: from now on @NAME@_run shares its work through `f`, in `parts` parts (at least 1).
   `user` is handed to `f`. A null `f` means @WITHOUT@ again.
   Returns IRC_OK, IRC_ERROR_NULL, IRC_ERROR_UNINITIALISED or IRC_ERROR_ARGUMENT. */
int @NAME@_set_parallel(@NAME@_ctx *ctx, irc_parallel_for f, void *user, int parts);

/* Runs the network once: reads the @UPPER@_INPUTS arrays of `inputs`, writes the @UPPER@_OUTPUTS arrays of `outputs`.
   Inputs and outputs are aligned as their element types ask for; outputs overlap neither each other, nor inputs, nor
   the workspace@BUT@. Calls may run at the same time, also with one context, when each has its own workspace and
   outputs.
   Returns IRC_OK, IRC_ERROR_NULL, IRC_ERROR_ALIGN or IRC_ERROR_UNINITIALISED; on an error nothing was written. */
int @NAME@_run(const @NAME@_ctx *ctx, const void *const *inputs, void *const *outputs, void *workspace);

/* Descriptions. */
extern const irc_network_info @NAME@_info;
extern const irc_tensor_info @NAME@_inputs[@IN_ARRAY@];
extern const irc_tensor_info @NAME@_outputs[@OUT_ARRAY@];

#ifdef __cplusplus
}
#endif

#endif
"""

_PROMISES = """\
The library allocates nothing, writes to no global data and needs libm, memcpy, memset and memmove only.
   Link with -l@NAME@ -lm."""
_POOL_PROMISES = """\
The library has a pool of @UPPER@_THREADS threads, of which the caller of @NAME@_run is one. It writes to no
   global data and needs libm, the C library and its threads (Linux). Link with -l@NAME@ -lm -lpthread."""
_RAM_LINE = """\
       void *ram;                (@UPPER@_INIT_RAM_BYTES bytes at a multiple of @UPPER@_WORKSPACE_ALIGN)
"""
_DECODES = """
   The weights of this library are coded: they are decoded into `ram`, of which each context needs its own.
   IRC_ERROR_DATA says that they are damaged."""
_POOL = """
/* Optional, after @NAME@_init: ends the pool and makes one of `threads` threads (at least 1), or of as many as there
   are processors for this process. `ram`: that of @NAME@_init, which is enough for @UPPER@_THREADS threads, or other.
   No call may be under way. Returns IRC_OK, IRC_ERROR_NULL, IRC_ERROR_UNINITIALISED, IRC_ERROR_ARGUMENT,
   IRC_ERROR_RAM or IRC_ERROR_ALIGN; on an error the pool is as it was. */
int @NAME@_set_threads(@NAME@_ctx *ctx, void *ram, size_t ram_bytes, int threads);

/* How many threads share the work: fewer than asked for where there are fewer processors, or where the system made
   no more threads. */
int @NAME@_threads(const @NAME@_ctx *ctx);
"""

_STACK = """\
/* Bytes of stack that the functions below need at most, interrupts not counted. */
#define @UPPER@_STACK_BYTES @BYTES@
"""
_PLACES = """\
/* Inputs and outputs need no memory of their own: they may lie in the workspace, so many bytes behind its start. All
   can be there at once. @NAME@_run destroys an input that lies there; outputs stay until the workspace is used
   again. Memory of the caller's is as good, and an input there is never written to. */"""

_SCALED = """\
/* Quantized inputs and outputs: an element q stands for (q - ZERO_POINT) * SCALE. A real number x is quantized as
   x / SCALE, rounded to the nearest integer (ties to the even one), plus ZERO_POINT, within the type's range. */"""

_LEVELS = """
/* The library holds kernels for several machines:
@LEVEL_LIST@
   @NAME@_init takes the last of them that the processor and the operating system support.
   @NAME@_level: the number of those that `ctx` uses, or would use when `ctx` is null.
   @NAME@_set_level: takes others, for tests; no call may be under way. Returns IRC_OK, IRC_ERROR_NULL,
   IRC_ERROR_UNINITIALISED, or IRC_ERROR_ARGUMENT where there is no such level or this machine does not run it. */
int @NAME@_level(const @NAME@_ctx *ctx);
int @NAME@_set_level(@NAME@_ctx *ctx, int level);
"""


def header_text(program: Program) -> str:
    """The header. Its constants are the library's; `NAME_init` checks that they are (through NAME_INTERFACE)."""
    name = program.name
    abi.check_name(name)
    values = {
        "SHARED": _SHARED,  # first: it has values of its own
        "ABI": str(abi.ABI_VERSION),
        "ERRORS": "\n".join(f"#define {n} {code} /* {meaning} */" for code, (n, meaning) in abi.ERRORS.items()),
        "NAME": name,
        "UPPER": name.upper(),
        "TARGET": _comment(program.target.name),
        "INPUTS": _list(program.inputs),
        "OUTPUTS": _list(program.outputs),
        "PORTS": _port_constants(program),
        "WORKSPACE": str(program.workspace_bytes),
        "ALIGN": str(program.alignment),
        "RAM": str(abi.init_ram_bytes(program)),
        "N_INPUTS": str(len(program.inputs)),
        "N_OUTPUTS": str(len(program.outputs)),
        "IN_ARRAY": str(max(1, len(program.inputs))),
        "OUT_ARRAY": str(max(1, len(program.outputs))),
        "HASH": f"0x{abi.interface_hash(program):08x}",
        "WORDS": str(abi.ctx_words(program)),
    }
    pooled = program.threads > 1
    values |= {
        "THREADS": str(program.threads),
        "PROMISE": _POOL_PROMISES if pooled else _PROMISES,
        "INIT": f"ram, {name.upper()}_INIT_RAM_BYTES" if abi.init_ram_bytes(program) else "NULL, 0",
        "RAM_LINE": _RAM_LINE if abi.init_ram_bytes(program) else "",
        "DECODES": "" if program.coded is None else _DECODES,
        "DAMAGED": "" if program.coded is None else "IRC_ERROR_DATA, ",
        "JOINS": ": the threads of the pool have ended when it returns" if pooled else "",
        "POOL": _POOL if pooled else "",
        "WITHOUT": "the pool" if pooled else "one thread",
        "STACK": "" if program.stack_bytes is None else _STACK.replace("@BYTES@", str(program.stack_bytes)),
        "BUT": " (but for the places in it, above)" if program.input_places or program.output_places else "",
        "LEVELS": _LEVELS if program.levels else "",
        "LEVEL_LIST": "\n".join(f"       {i}  {_comment(t.name)}" for i, t in enumerate(program.levels)),
    }
    text = _TEMPLATE
    for key in (
        "PROMISE",
        "INIT",
        "RAM_LINE",
        "DECODES",
        "DAMAGED",
        "JOINS",
        "POOL",
        "WITHOUT",
        "BUT",
        "STACK",
        "LEVELS",
        "LEVEL_LIST",
    ):  # the first of them have values of their own
        text = text.replace(f"@{key}@", values[key])
    for key in ("THREADS", "SHARED", "ABI", "ERRORS", "NAME", "UPPER", "TARGET", "WORKSPACE", "ALIGN", "RAM"):
        text = text.replace(f"@{key}@", values[key])
    for key in ("N_INPUTS", "N_OUTPUTS", "IN_ARRAY", "OUT_ARRAY", "HASH", "WORDS"):
        text = text.replace(f"@{key}@", values[key])
    # Last, as the names of a model's tensors may look like anything.
    head, rest = text.split("@INPUTS@")
    middle, rest = rest.split("@OUTPUTS@")
    body, tail = rest.split("@PORTS@")
    return "".join([head, values["INPUTS"], middle, values["OUTPUTS"], body, values["PORTS"], tail])


def _port_constants(program: Program) -> str:
    lines, scaled, places = [], [], []
    both = (("INPUT", program.inputs, program.input_places), ("OUTPUT", program.outputs, program.output_places))
    for kind, ports, offsets in both:
        for i, port in enumerate(ports):
            start = f"#define {program.name.upper()}_{kind}_{i}"
            lines += [f"{start}_BYTES {port.nbytes}", f"{start}_ELEMENTS {abi.elements(port)}"]
            if port.scale is not None:
                scaled.append(f"{start}_SCALE {c_float(port.scale)}")
                scaled.append(f"{start}_ZERO_POINT {_integer(port.zero_point or 0)}")
            if offsets and offsets[i] is not None:
                places.append(f"{start}_OFFSET {offsets[i]}")
    if scaled:
        scaled.insert(0, _SCALED)
    if places:
        places.insert(0, _PLACES.replace("@NAME@", program.name))
    return "\n".join(["/* Sizes of each. */", *lines, *scaled, *places]) if lines else ""


def c_float(value: float) -> str:
    """A float32 number as C and C++ write it, exactly."""
    text = f"{value:.9g}"
    return f"{text}f" if any(c in text for c in ".e") else f"{text}.0f"


def _integer(value: int) -> str:
    return str(value) if value >= 0 else f"({value})"


def _list(ports: tuple[Port, ...]) -> str:
    if not ports:
        return "       none"
    return "\n".join(f"       {i}  {_comment(_describe(p))}" for i, p in enumerate(ports))


def _describe(port: Port) -> str:
    text = f"{port.name}: {port.dtype}[{', '.join(map(str, port.shape))}]"
    if port.scale is not None:
        text += f", real = (q - {port.zero_point or 0}) * {port.scale:.9g}"
    return text


def _comment(text: str) -> str:
    """`text` so that it can stand in a C comment: printable ASCII, no comment marks, no trigraphs, no end of line."""
    plain = "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in text[:200])
    return plain.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")
