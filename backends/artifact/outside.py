"""What a network may need of the C library."""

from __future__ import annotations

MEMORY_FUNCTIONS = frozenset({"memcpy", "memset", "memmove"})
_MATH = """
acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp2 expm1 fabs fdim floor fma
fmax fmin fmod frexp hypot ilogb ldexp lgamma llrint llround log log10 log1p log2 logb lrint lround modf nan
nearbyint nextafter pow remainder rint round roundeven scalbn sin sincos sinh sqrt tan tanh tgamma trunc exp10
""".split()  # noqa: SIM905 - a list of strings would be one line per name
MATH_FUNCTIONS = frozenset(_MATH) | frozenset(f"{f}f" for f in _MATH)
"""C99's libm (and glibc's sincos, exp10, roundeven, which LLVM makes of pairs of calls), double and float."""

OUTSIDE = MEMORY_FUNCTIONS | MATH_FUNCTIONS
