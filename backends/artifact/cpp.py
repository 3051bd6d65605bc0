"""include/NAME.hpp: a C++17 class around the C interface of one network. Header only; the library is the same.

The class owns one block of memory (workspace, RAM of NAME_init, context), from the heap or the caller's. What the C
interface takes as untyped pointers is spans of the elements' types here, whose sizes are checked.
"""

from __future__ import annotations

from irc.backends.artifact import interface as abi
from irc.backends.artifact.header import c_float
from irc.backends.program import Port, Program
from irc.ir.quantization import Quantization

_TYPES = {
    "float32": "float",
    "float64": "double",
    "bool": "bool",
    "float16": "std::uint16_t",
    "bfloat16": "std::uint16_t",
}
"""Element types; the others are std::NAME_t. What C++17 has no type for is its bits."""

_TEMPLATE = """\
// @NAME@: the C++17 interface of the network in @NAME@.h, compiled by irc for @TARGET@.
//
//     irc::@NAME@_network net;                       // memory from the heap; or, for none of it:
//     alignas(irc::@NAME@_network::memory_align) static std::byte memory[irc::@NAME@_network::memory_bytes];
//     irc::@NAME@_network net(memory);
//     net.run(@EXAMPLE@);   // arrays, std::array, std::vector, std::span
//
// Errors are thrown as irc::error. Without exceptions run() returns the code, and status() has that of the constructor.
#ifndef IRC_@NAME@_HPP
#define IRC_@NAME@_HPP

#if __cplusplus < 201703L && !(defined(_MSVC_LANG) && _MSVC_LANG >= 201703L)
#error "@NAME@.hpp needs C++17 (-std=c++17); @NAME@.h does with any C and C++"
#endif

#include "@NAME@.h"

@MATH@@SHARED@
namespace irc {

// Movable, not copyable. One object runs once at a time; for several threads make several.
class @NAME@_network {
    static constexpr std::size_t align = @UPPER@_WORKSPACE_ALIGN;
    static constexpr std::size_t ram_at = (@UPPER@_WORKSPACE_BYTES + align - 1) / align * align;
    static constexpr std::size_t ctx_at = ram_at + (@UPPER@_INIT_RAM_BYTES + align - 1) / align * align;

public:
    // Memory that an object needs, all of it: workspace, RAM and context.
    static constexpr std::size_t memory_bytes = ctx_at + sizeof(@NAME@_ctx);
    static constexpr std::size_t memory_align = align > alignof(@NAME@_ctx) ? align : alignof(@NAME@_ctx);
@CONSTANTS@
    // Memory from the heap. Throws std::bad_alloc and irc::error; without exceptions see status().
    @NAME@_network() : heap_(true)
    {
#if defined(__cpp_exceptions)
        memory_ = static_cast<std::byte *>(::operator new(memory_bytes, std::align_val_t(memory_align)));
        try {
            start();
        } catch (...) {
            drop();
            throw;
        }
#else
        memory_ = static_cast<std::byte *>(
            ::operator new(memory_bytes, std::align_val_t(memory_align), std::nothrow));
        start();
#endif
    }

    // The caller's memory, memory_bytes at a multiple of memory_align. It is used until the object has gone.
    explicit @NAME@_network(span<std::byte> memory) : memory_(memory.data()), heap_(false)
    {
        if (memory.size() < memory_bytes) {
            memory_ = nullptr;
            status_ = detail::failed(IRC_ERROR_RAM);
        } else if (reinterpret_cast<std::uintptr_t>(memory_) % memory_align != 0) {
            memory_ = nullptr;
            status_ = detail::failed(IRC_ERROR_ALIGN);
        } else {
            start();
        }
    }

    @NAME@_network(@NAME@_network &&other) noexcept
        : memory_(std::exchange(other.memory_, nullptr)), status_(std::exchange(other.status_, IRC_ERROR_NULL)),
          heap_(other.heap_) {}
    @NAME@_network &operator=(@NAME@_network &&other) noexcept
    {
        if (this != &other) {
            end();
            memory_ = std::exchange(other.memory_, nullptr);
            status_ = std::exchange(other.status_, IRC_ERROR_NULL);
            heap_ = other.heap_;
        }
        return *this;
    }
    ~@NAME@_network() { end(); }

    // IRC_OK, or why the object cannot run (it was moved from, or could not be made).
    int status() const noexcept { return status_; }
    explicit operator bool() const noexcept { return status_ == IRC_OK; }

    // Runs once. Returns IRC_OK; an error is thrown, or returned without exceptions. IRC_ERROR_ARGUMENT: a span of
    // another size than the tensor.
    int run(@PARAMETERS@)
    {
        if (status_ != IRC_OK) return detail::failed(status_);
@CHECKS@        const void *const inputs[] = {@INPUTS@};
        void *const outputs[] = {@OUTPUTS@};
        const int code = @NAME@_run(ctx(), inputs, outputs, memory_);
        return code == IRC_OK ? code : detail::failed(code);
    }
@PLACES@
    // For the functions of @NAME@.h, while status() is IRC_OK.
    @NAME@_ctx *ctx() noexcept { return reinterpret_cast<@NAME@_ctx *>(memory_ + ctx_at); }

private:
    void start()
    {
        if (memory_ == nullptr) {
            status_ = detail::failed(IRC_ERROR_RAM);
            return;
        }
        ::new (static_cast<void *>(memory_ + ctx_at)) @NAME@_ctx();
        status_ = @NAME@_init(ctx(), @UPPER@_INIT_RAM_BYTES ? memory_ + ram_at : nullptr, @UPPER@_INIT_RAM_BYTES);
        if (status_ != IRC_OK) detail::failed(status_);
    }
    void end() noexcept
    {
        if (status_ == IRC_OK) @NAME@_deinit(ctx());
        drop();
    }
    void drop() noexcept
    {
        if (heap_ && memory_ != nullptr) ::operator delete(memory_, std::align_val_t(memory_align));
        memory_ = nullptr;
    }

    std::byte *memory_ = nullptr;
    int status_ = IRC_ERROR_UNINITIALISED;
    bool heap_;
};

}  // namespace irc

#endif
"""

_SHARED = """\
#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <utility>
#if defined(__has_include)
#if __has_include(<version>)
#include <version>
#endif
#endif
#if defined(__cpp_lib_span)
#include <span>
#endif

// Shared by all networks of irc.
#ifndef IRC_CPP_VERSION
#define IRC_CPP_VERSION 1

namespace irc {

#if defined(__cpp_lib_span)
template <class T> using span = std::span<T>;
#else
// What std::span is in C++20, as far as it is needed here.
template <class T> class span {
public:
    constexpr span() noexcept = default;
    constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <std::size_t N> constexpr span(T (&array)[N]) noexcept : data_(array), size_(N) {}
    template <class C, class = decltype(static_cast<T *>(std::declval<C &>().data()))>
    constexpr span(C &&container) : data_(container.data()), size_(container.size()) {}
    constexpr T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr T *begin() const noexcept { return data_; }
    constexpr T *end() const noexcept { return data_ + size_; }
    constexpr T &operator[](std::size_t i) const noexcept { return data_[i]; }

private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};
#endif

// In words, what a function of a network returned.
inline const char *message(int code) noexcept
{
    switch (code) {
@MESSAGES@
    default: return "unknown error";
    }
}

class error : public std::exception {
public:
    explicit error(int code) noexcept : code_(code) {}
    int code() const noexcept { return code_; }
    const char *what() const noexcept override { return message(code_); }

private:
    int code_;
};

namespace detail {
inline int failed(int code)
{
#if defined(__cpp_exceptions)
    throw error(code);
#else
    return code;
#endif
}
}  // namespace detail

}  // namespace irc

#elif IRC_CPP_VERSION != 1
#error "headers of different versions of irc's C++ interface in one program: compile the models again"
#endif
"""

_PLACES = """
    // Places in the object's memory where inputs and outputs may live; run() then needs no memory elsewhere. An output
    // may lie where an input was: write the inputs before each run.
@ACCESSORS@
    int run() { return run(@OWN@); }
"""


def cpp_text(program: Program) -> str:
    """The header. `NAME.h` has to lie beside it."""
    name, upper = program.name, program.name.upper()
    inputs = [(f"input_{i}", port) for i, port in enumerate(program.inputs)]
    outputs = [(f"output_{i}", port) for i, port in enumerate(program.outputs)]
    parameters = [f"span<const {_type(p)}> {n}" for n, p in inputs] + [f"span<{_type(p)}> {n}" for n, p in outputs]
    both = [*inputs, *outputs]
    values = {
        "SHARED": _SHARED,
        "MESSAGES": "\n".join(f'    case {n}: return "{meaning}";' for n, meaning in abi.ERRORS.values()),
        "EXAMPLE": ", ".join(n for n, _ in both),
        "MATH": "#include <cmath>\n" if any(p.quantization for p in program.inputs) else "",
        "CONSTANTS": "".join(_constants(n, port) for n, port in both),
        "PARAMETERS": f",\n{' ' * 12}".join(parameters),
        "CHECKS": "".join(
            f"        if ({n}.size() != {upper}_{n.upper()}_ELEMENTS) return detail::failed(IRC_ERROR_ARGUMENT);\n"
            for n, _ in both
        ),
        "INPUTS": ", ".join(f"{n}.data()" for n, _ in inputs) or "nullptr",
        "OUTPUTS": ", ".join(f"{n}.data()" for n, _ in outputs) or "nullptr",
        "PLACES": _places(upper, inputs, outputs),
        "TARGET": program.target.name,
        "UPPER": upper,
        "NAME": name,
    }
    text = _TEMPLATE
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _type(port: Port) -> str:
    return _TYPES.get(port.dtype, f"std::{port.dtype}_t")


def _constants(name: str, port: Port) -> str:
    """Element type and count, and what quantized elements stand for."""
    lines = [
        f"    using {name}_type = {_type(port)};",
        f"    static constexpr std::size_t {name}_elements = {abi.elements(port)};",
    ]
    if port.scale is not None:
        lines += [
            f"    static constexpr float {name}_scale = {c_float(port.scale)};  // real = (q - zero_point) * scale",
            f"    static constexpr int {name}_zero_point = {port.zero_point or 0};",
        ]
    if port.quantization is not None:
        lines.append(_quantize(name, port.quantization) if name.startswith("input") else _dequantize(name))
    return "\n".join(lines) + "\n"


def _quantize(name: str, numbers: Quantization) -> str:
    low, high = (limit - numbers.zero_point for limit in numbers.limits)
    return f"""\
    // Rounds half to even and stays in the range of the type; NaN becomes its lowest number.
    static {name}_type quantize_{name}(float real) noexcept
    {{
        const float steps = std::nearbyint(real / {name}_scale);
        const int q = !(steps > {low}) ? {low} : steps > {high} ? {high} : static_cast<int>(steps);
        return static_cast<{name}_type>(q + {name}_zero_point);
    }}"""


def _dequantize(name: str) -> str:
    return f"""\
    static constexpr float dequantize_{name}({name}_type q) noexcept
    {{
        return static_cast<float>(q - {name}_zero_point) * {name}_scale;
    }}"""


def _places(upper: str, inputs: list[tuple[str, Port]], outputs: list[tuple[str, Port]]) -> str:
    """Accessors of the advised places, where the C header names them."""
    both = [*inputs, *outputs]
    if not both:
        return ""
    known = " && ".join(f"defined({upper}_{name.upper()}_OFFSET)" for name, _ in both)
    accessors = "\n".join(
        f"    span<{_type(port)}> {name}() noexcept\n    {{\n"
        f"        return {{reinterpret_cast<{_type(port)} *>(memory_ + {upper}_{name.upper()}_OFFSET),"
        f" {name}_elements}};\n    }}"
        for name, port in both
    )
    own = ", ".join(f"{name}()" for name, _ in both)
    return f"\n#if {known}" + _PLACES.replace("@ACCESSORS@", accessors).replace("@OWN@", own) + "#endif\n"
