"""float32 arithmetic in integers, for cores without an FPU: where fixed-point numbers cannot tell how to round.

Functions over the bits of float32 numbers, as LLVM IR text. They are called about once in ten thousand elements, so
they are short rather than fast: no division, no 64-bit product (ARMv6-M has none), no count of leading zeros. Every
result is rounded to nearest, ties to even, as IEEE 754 has it. Infinities and NaN do not occur in integer kernels, and
results below the smallest normal number are zero: the plan keeps factors far from both.
"""

from __future__ import annotations

import re

_FLOAT = """
define i32 @irc_soft_float(i32 %n) noinline optsize nounwind cold {
  %sign = and i32 %n, -2147483648
  %minus = sub i32 0, %n
  %negative = icmp slt i32 %n, 0
  %size = select i1 %negative, i32 %minus, i32 %n
  %none = icmp eq i32 %n, 0
  br i1 %none, label %zero, label %shift
zero:
  ret i32 0
shift:
  %a = phi i32 [ %size, %0 ], [ %a2, %more ]
  %e = phi i32 [ 157, %0 ], [ %e2, %more ]
  %top = icmp slt i32 %a, 0
  br i1 %top, label %round, label %more
more:
  %a2 = shl i32 %a, 1
  %e2 = add i32 %e, -1
  br label %shift
round:
  %m = lshr i32 %a, 8
  %odd = and i32 %m, 1
  %rest = and i32 %a, 255
  %up0 = add i32 %rest, %odd
  %up = icmp ugt i32 %up0, 128
  %one = zext i1 %up to i32
  %rounded = add i32 %m, %one
  %e3 = shl i32 %e, 23
  %b = add i32 %e3, %rounded
  %r = or i32 %b, %sign
  ret i32 %r
}
"""

_MUL = """
define i32 @irc_soft_mul(i32 %x, i32 %y) noinline optsize nounwind cold {
  %both = xor i32 %x, %y
  %sign = and i32 %both, -2147483648
  %ex0 = lshr i32 %x, 23
  %ey0 = lshr i32 %y, 23
  %ex = and i32 %ex0, 255
  %ey = and i32 %ey0, 255
  %xnone = icmp eq i32 %ex, 0
  %ynone = icmp eq i32 %ey, 0
  %none = or i1 %xnone, %ynone
  br i1 %none, label %zero, label %product
zero:
  ret i32 %sign
product:
  %mx0 = and i32 %x, 8388607
  %my0 = and i32 %y, 8388607
  %mx = or i32 %mx0, 8388608
  %my = or i32 %my0, 8388608
  %xh = lshr i32 %mx, 12
  %yh = lshr i32 %my, 12
  %xl = and i32 %mx, 4095
  %yl = and i32 %my, 4095
  %hh = mul i32 %xh, %yh
  %hl = mul i32 %xh, %yl
  %lh = mul i32 %xl, %yh
  %ll = mul i32 %xl, %yl
  %mid = add i32 %hl, %lh
  %mh = lshr i32 %mid, 12
  %ml = and i32 %mid, 4095
  %ml2 = shl i32 %ml, 12
  %low0 = add i32 %ml2, %ll
  %carry = lshr i32 %low0, 24
  %low1 = and i32 %low0, 16777215
  %top0 = add i32 %hh, %mh
  %top1 = add i32 %top0, %carry
  %e0 = add i32 %ex, %ey
  %small = icmp ult i32 %top1, 8388608
  br i1 %small, label %double, label %round
double:
  %top2 = shl i32 %top1, 1
  %next = lshr i32 %low1, 23
  %top3 = or i32 %top2, %next
  %low2 = shl i32 %low1, 1
  %low3 = and i32 %low2, 16777215
  %e1 = add i32 %e0, -1
  br label %round
round:
  %m = phi i32 [ %top1, %product ], [ %top3, %double ]
  %low = phi i32 [ %low1, %product ], [ %low3, %double ]
  %e = phi i32 [ %e0, %product ], [ %e1, %double ]
  %odd = and i32 %m, 1
  %up0 = add i32 %low, %odd
  %up = icmp ugt i32 %up0, 8388608
  %one = zext i1 %up to i32
  %rounded = add i32 %m, %one
  %e2 = add i32 %e, -127
  %under = icmp slt i32 %e2, 0
  br i1 %under, label %zero, label %done
done:
  %e3 = shl i32 %e2, 23
  %b = add i32 %e3, %rounded
  %r = or i32 %b, %sign
  ret i32 %r
}
"""

_ADD = """
define i32 @irc_soft_add(i32 %x, i32 %y) noinline optsize nounwind cold {
  %xa = and i32 %x, 2147483647
  %ya = and i32 %y, 2147483647
  %less = icmp ult i32 %xa, %ya
  %p = select i1 %less, i32 %y, i32 %x
  %q = select i1 %less, i32 %x, i32 %y
  %pa = and i32 %p, 2147483647
  %qa = and i32 %q, 2147483647
  %ep = lshr i32 %pa, 23
  %eq = lshr i32 %qa, 23
  %d = sub i32 %ep, %eq
  %far = icmp ugt i32 %d, 26
  %none = icmp eq i32 %eq, 0
  %alone = or i1 %far, %none
  br i1 %alone, label %first, label %both
first:
  ret i32 %p
both:
  %sign = and i32 %p, -2147483648
  %mp0 = and i32 %p, 8388607
  %mq0 = and i32 %q, 8388607
  %mp1 = or i32 %mp0, 8388608
  %mq1 = or i32 %mq0, 8388608
  %mp = shl i32 %mp1, 6
  %mq2 = shl i32 %mq1, 6
  %mq3 = lshr i32 %mq2, %d
  %back = shl i32 %mq3, %d
  %inexact = icmp ne i32 %back, %mq2
  %sticky = zext i1 %inexact to i32
  %mq = or i32 %mq3, %sticky
  %signs = xor i32 %p, %q
  %differ = icmp slt i32 %signs, 0
  br i1 %differ, label %subtract, label %sum
subtract:
  %less0 = sub i32 %mp, %mq
  %gone = icmp eq i32 %less0, 0
  br i1 %gone, label %zero, label %shift
zero:
  ret i32 0
shift:
  %s = phi i32 [ %less0, %subtract ], [ %s2, %more ]
  %es = phi i32 [ %ep, %subtract ], [ %es2, %more ]
  %full = icmp ugt i32 %s, 536870911
  br i1 %full, label %round, label %more
more:
  %s2 = shl i32 %s, 1
  %es2 = add i32 %es, -1
  br label %shift
sum:
  %sum0 = add i32 %mp, %mq
  %over = icmp ugt i32 %sum0, 1073741823
  br i1 %over, label %half, label %round
half:
  %out = and i32 %sum0, 1
  %sum1 = lshr i32 %sum0, 1
  %sum2 = or i32 %sum1, %out
  %e1 = add i32 %ep, 1
  br label %round
round:
  %t = phi i32 [ %s, %shift ], [ %sum0, %sum ], [ %sum2, %half ]
  %e = phi i32 [ %es, %shift ], [ %ep, %sum ], [ %e1, %half ]
  %m = lshr i32 %t, 6
  %odd = and i32 %m, 1
  %rest = and i32 %t, 63
  %up0 = add i32 %rest, %odd
  %up = icmp ugt i32 %up0, 32
  %one = zext i1 %up to i32
  %rounded = add i32 %m, %one
  %e2 = add i32 %e, -1
  %under = icmp slt i32 %e2, 0
  br i1 %under, label %zero, label %done
done:
  %e3 = shl i32 %e2, 23
  %b = add i32 %e3, %rounded
  %r = or i32 %b, %sign
  ret i32 %r
}
"""

_ROUND = """
define i32 @irc_soft_round(i32 %x) noinline optsize nounwind cold {
  %e0 = lshr i32 %x, 23
  %e = and i32 %e0, 255
  %shift = sub i32 150, %e
  %m0 = and i32 %x, 8388607
  %m = or i32 %m0, 8388608
  %tiny = icmp sgt i32 %shift, 24
  br i1 %tiny, label %zero, label %sizable
zero:
  ret i32 0
sizable:
  %large = icmp slt i32 %shift, 1
  br i1 %large, label %done, label %round
round:
  %q = lshr i32 %m, %shift
  %back = shl i32 %q, %shift
  %rest = sub i32 %m, %back
  %odd = and i32 %q, 1
  %less = add i32 %shift, -1
  %half = shl i32 1, %less
  %up0 = add i32 %rest, %odd
  %up = icmp ugt i32 %up0, %half
  %one = zext i1 %up to i32
  %rounded = add i32 %q, %one
  br label %done
done:
  %size = phi i32 [ 16777216, %sizable ], [ %rounded, %round ]
  %minus = sub i32 0, %size
  %negative = icmp slt i32 %x, 0
  %r = select i1 %negative, i32 %minus, i32 %size
  ret i32 %r
}
"""

_LEVEL = """
define i32 @irc_soft_level(i32 %sum, i32 %factor) noinline optsize nounwind cold {
  %real = call i32 @irc_soft_float(i32 %sum)
  %product = call i32 @irc_soft_mul(i32 %real, i32 %factor)
  %level = call i32 @irc_soft_round(i32 %product)
  ret i32 %level
}
"""

FUNCTIONS = {
    "irc_soft_float": _FLOAT,
    "irc_soft_mul": _MUL,
    "irc_soft_add": _ADD,
    "irc_soft_round": _ROUND,
    "irc_soft_level": _LEVEL,
}
"""`float(n)` of an int32; `mul(x, y)`; `add(x, y)`; `round(x)`: to an integer, ties to even, at most 2**24 in size;
`level(sum, factor)`: round(float(sum) * factor)."""

_USED = re.compile(r"@(irc_soft_\w+)\(")
_DEFINED = re.compile(r"^define (?:internal )?i32 @(irc_soft_\w+)\(", re.MULTILINE)


def with_soft_functions(text: str) -> str:
    """`text` with an internal definition in the place of each declaration of such a function."""
    needed: set[str] = set()
    waiting = (set(_USED.findall(text)) & FUNCTIONS.keys()) - set(_DEFINED.findall(text))
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting |= set(_USED.findall(FUNCTIONS[name])) - needed
    if not needed:
        return text
    body = [line for line in text.splitlines() if not _declares(line, needed)]
    added = "".join(FUNCTIONS[name].replace("define ", "define internal ") for name in FUNCTIONS if name in needed)
    return "\n".join(body) + "\n" + added


def _declares(line: str, names: set[str]) -> bool:
    return line.startswith("declare ") and bool(set(_USED.findall(line)) & names)
