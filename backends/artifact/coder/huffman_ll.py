"""The decoder of Huffman codes as LLVM IR text, a part of the glue written for few bytes of code. `decoder.c` is the
same in C and explains it.
"""

from __future__ import annotations

import re

from irc.backends.artifact.coder.huffman import LONGEST

_SMALL = "noinline nounwind minsize optsize"
_DATA, _SLOTS, _BYTES, _META, _CODES = 0, 8, 16, 20, 24


def huffman_ll(word: str) -> list[str]:
    """@irc_decode as `decoder.decoder_ll` has it. `word`: the integer as wide as a pointer."""
    width = int(word[1:])
    text = _NUMBER + _LENGTHS + _SYMBOLS + _DECODE
    for name, value in {
        "SMALL": _SMALL,
        "WORD": word,
        "TOP": str(width - LONGEST),
        "LESS": str(width - 4),
        "LAST": str(width - 1),
        "AT_ONCE": str((width - 7) // LONGEST),
        "ONE": str(1 << LONGEST),
        "LONGEST": str(LONGEST),
    }.items():
        text = text.replace(f"${name}$", value)
    text = re.sub(r"(zext|trunc) i32 (%\w+) to i32", r"bitcast i32 \2 to i32", text)  # the same width
    return [
        f"declare {word} @llvm.bswap.{word}({word})",
        "declare i32 @llvm.fshl.i32(i32, i32, i32)",
        "declare void @llvm.memset.p0.i32(ptr, i8, i32, i1)",
        *text.splitlines(),
    ]


# What lies ahead is read from the first byte, and taken as zeros, where not as many bytes are left.
_NUMBER = f"""
define internal i32 @coder_number(ptr %d, ptr %at) $SMALL$ {{
  %data = load ptr, ptr %d
  %pb = getelementptr i8, ptr %d, i32 {_BYTES}
  %bytes = load i32, ptr %pb
  %a = load i32, ptr %at
  %p = lshr i32 %a, 3
  %behind = add i32 %p, 8
  %there = icmp ule i32 %behind, %bytes
  %from = select i1 %there, i32 %p, i32 0
  %pf = getelementptr i8, ptr %data, i32 %from
  %raw = load $WORD$, ptr %pf, align 1
  %swapped = call $WORD$ @llvm.bswap.$WORD$($WORD$ %raw)
  %begun = and i32 %a, 7
  %begun_w = zext i32 %begun to $WORD$
  %shifted = shl $WORD$ %swapped, %begun_w
  %w = select i1 %there, $WORD$ %shifted, $WORD$ 0
  %n_w = lshr $WORD$ %w, $LESS$
  %n = trunc $WORD$ %n_w to i32
  %rest = shl $WORD$ %w, 4
  %rest1 = lshr $WORD$ %rest, 1
  %down = sub $WORD$ $LAST$, %n_w
  %low_w = lshr $WORD$ %rest1, %down
  %low = trunc $WORD$ %low_w to i32
  %taken = add i32 %n, 4
  %next = add i32 %a, %taken
  store i32 %next, ptr %at
  %one = shl i32 1, %n
  %less = sub i32 %one, 1
  %value = add i32 %less, %low
  ret i32 %value
}}
"""

_LENGTHS = f"""
define internal i1 @coder_lengths(ptr %d, i32 %mask, i32 %shift) $SMALL$ {{
entry:
  %codes = getelementptr i8, ptr %d, i32 {_CODES}
  %ps = getelementptr i8, ptr %d, i32 {_SLOTS}
  %slots = load ptr, ptr %ps
  %first = call i32 @coder_number(ptr %d, ptr %codes)
  br label %length
length:
  %l = phi i32 [ 0, %entry ], [ %l1, %next ]
  %slot = phi i32 [ 0, %entry ], [ %s, %next ]
  %rank = phi i32 [ 0, %entry ], [ %r, %next ]
  %n = call i32 @coder_number(ptr %d, ptr %codes)
  %each = lshr i32 $ONE$, %l
  %up = sub i32 $LONGEST$, %l
  %up1 = and i32 %up, 15
  %need = shl i32 %n, %up1
  %end = add i32 %slot, %need
  %much = icmp ugt i32 %end, $ONE$
  %long = icmp ugt i32 %l, $LONGEST$
  %bad = or i1 %much, %long
  br i1 %bad, label %out, label %symbols
symbols:
  %s = phi i32 [ %slot, %length ], [ %f1, %filled ]
  %r = phi i32 [ %rank, %length ], [ %r1, %filled ]
  %done = icmp eq i32 %s, %end
  br i1 %done, label %next, label %symbol
symbol:
  %half = lshr i32 %r, 1
  %odd = and i32 %r, 1
  %sign = sub i32 0, %odd
  %away = xor i32 %half, %sign
  %v = add i32 %first, %away
  %v1 = and i32 %v, %mask
  %v2 = shl i32 %v1, %shift
  %entry2 = or i32 %v2, %l
  %e = trunc i32 %entry2 to i16
  br label %fill
fill:
  %f = phi i32 [ %s, %symbol ], [ %f1, %fill ]
  %c = phi i32 [ %each, %symbol ], [ %c1, %fill ]
  %pf = getelementptr i16, ptr %slots, i32 %f
  store i16 %e, ptr %pf, align 2
  %f1 = add i32 %f, 1
  %c1 = sub i32 %c, 1
  %more = icmp ne i32 %c1, 0
  br i1 %more, label %fill, label %filled
filled:
  %r1 = add i32 %r, 1
  br label %symbols
next:
  %l1 = add i32 %l, 1
  %full = icmp eq i32 %s, $ONE$
  br i1 %full, label %out, label %length
out:
  %good = phi i1 [ false, %length ], [ true, %next ]
  ret i1 %good
}}
"""

_SYMBOLS = f"""
define internal void @coder_symbols(ptr %d, ptr %to0, i32 %count0, i32 %step) noinline nounwind {{
entry:
  %data = load ptr, ptr %d
  %ps = getelementptr i8, ptr %d, i32 {_SLOTS}
  %slots = load ptr, ptr %ps
  %pb = getelementptr i8, ptr %d, i32 {_BYTES}
  %bytes = load i32, ptr %pb
  %pa = getelementptr i8, ptr %d, i32 {_CODES}
  %a0 = load i32, ptr %pa
  %step_w = zext i32 %step to $WORD$
  br label %some
some:
  %a = phi i32 [ %a0, %entry ], [ %a2, %after ]
  %count = phi i32 [ %count0, %entry ], [ %count2, %after ]
  %to = phi ptr [ %to0, %entry ], [ %to2, %after ]
  %p = lshr i32 %a, 3
  %behind = add i32 %p, 8
  %there = icmp ule i32 %behind, %bytes
  br i1 %there, label %read, label %begin
read:
  %pf = getelementptr i8, ptr %data, i32 %p
  %raw = load $WORD$, ptr %pf, align 1
  %swapped = call $WORD$ @llvm.bswap.$WORD$($WORD$ %raw)
  %begun = and i32 %a, 7
  %begun_w = zext i32 %begun to $WORD$
  %shifted = shl $WORD$ %swapped, %begun_w
  br label %begin
begin:
  %w = phi $WORD$ [ 0, %some ], [ %shifted, %read ]
  %few = icmp ult i32 %count, $AT_ONCE$
  %k0 = select i1 %few, i32 %count, i32 $AT_ONCE$
  %count2 = sub i32 %count, %k0
  br label %one
one:
  %w1 = phi $WORD$ [ %w, %begin ], [ %w2, %one ]
  %a1 = phi i32 [ %a, %begin ], [ %a2, %one ]
  %k = phi i32 [ %k0, %begin ], [ %k2, %one ]
  %to1 = phi ptr [ %to, %begin ], [ %to2, %one ]
  %i = lshr $WORD$ %w1, $TOP$
  %pe = getelementptr i16, ptr %slots, $WORD$ %i
  %e = load i16, ptr %pe, align 2
  %e32 = zext i16 %e to i32
  %n = and i32 %e32, 15
  %n32 = and i32 %e32, $LAST$
  %n_w = zext i32 %n32 to $WORD$
  %w2 = shl $WORD$ %w1, %n_w
  %a2 = add i32 %a1, %n
  %symbol = lshr i16 %e, 8
  %byte = trunc i16 %symbol to i8
  %old = load i8, ptr %to1
  %new = or i8 %old, %byte
  store i8 %new, ptr %to1
  %to2 = getelementptr i8, ptr %to1, $WORD$ %step_w
  %k2 = sub i32 %k, 1
  %last = icmp eq i32 %k2, 0
  %end = icmp eq i32 %count2, 0
  br i1 %last, label %after, label %one
after:
  br i1 %end, label %out, label %some
out:
  store i32 %a2, ptr %pa
  ret void
}}
"""

_DECODE = f"""
define internal i32 @irc_decode(ptr %data, i32 %meta, i32 %bytes, ptr %out, i32 %out_bytes, ptr %scratch) $SMALL$ {{
entry:
  %d = alloca [32 x i8], align 8
  call void @llvm.memset.p0.i32(ptr %out, i8 0, i32 %out_bytes, i1 false)
  store ptr %data, ptr %d
  %ps = getelementptr i8, ptr %d, i32 {_SLOTS}
  store ptr %scratch, ptr %ps
  %pb = getelementptr i8, ptr %d, i32 {_BYTES}
  store i32 %bytes, ptr %pb
  %pm = getelementptr i8, ptr %d, i32 {_META}
  store i32 0, ptr %pm
  %pc = getelementptr i8, ptr %d, i32 {_CODES}
  %bit = shl i32 %meta, 3
  store i32 %bit, ptr %pc
  %all = lshr i32 %bytes, 2
  %little = icmp ult i32 %all, 3
  br i1 %little, label %bad, label %sum
sum:
  %i = phi i32 [ 0, %entry ], [ %i1, %sum ]
  %h = phi i32 [ 0, %entry ], [ %h1, %sum ]
  %pw = getelementptr i32, ptr %data, i32 %i
  %x = load i32, ptr %pw, align 1
  %turned = call i32 @llvm.fshl.i32(i32 %h, i32 %h, i32 5)
  %h1 = xor i32 %turned, %x
  %i1 = add i32 %i, 1
  %more = icmp ult i32 %i1, %all
  br i1 %more, label %sum, label %summed
summed:
  %whole = icmp eq i32 %h1, 0
  br i1 %whole, label %group, label %bad
group:
  %kind = call i32 @coder_number(ptr %d, ptr %pm)
  %list = load i32, ptr %pm
  %halves = and i32 %kind, 1
  %kind2 = lshr i32 %kind, 1
  %step = and i32 %kind2, 15
  %planes = add i32 %step, %halves
  %whole_bytes = icmp eq i32 %halves, 0
  %mask = select i1 %whole_bytes, i32 255, i32 15
  %none = icmp eq i32 %kind, 0
  br i1 %none, label %end, label %plane
plane:
  %n = phi i32 [ 0, %group ], [ %n1, %planed ]
  %done = icmp eq i32 %n, %planes
  br i1 %done, label %group, label %table
table:
  store i32 %list, ptr %pm
  %place0 = select i1 %whole_bytes, i32 %n, i32 0
  %upper = sub i32 %n, %place0
  %upper4 = shl i32 %upper, 2
  %lower = and i32 %upper4, 4
  %shift = add i32 %lower, 8
  %good = call i1 @coder_lengths(ptr %d, i32 %mask, i32 %shift)
  br i1 %good, label %region, label %bad
region:
  %place = phi i32 [ %place0, %table ], [ %at, %decoded ]
  %count = call i32 @coder_number(ptr %d, ptr %pm)
  %listed = icmp eq i32 %count, 0
  br i1 %listed, label %planed, label %decode
decode:
  %gap = call i32 @coder_number(ptr %d, ptr %pm)
  %gap64 = shl i32 %gap, 6
  %at = add i32 %place, %gap64
  %less = sub i32 %count, 1
  %size = mul i32 %less, %step
  %last = add i32 %at, %size
  %within = icmp ult i32 %last, %out_bytes
  br i1 %within, label %decoded, label %bad
decoded:
  %to = getelementptr i8, ptr %out, i32 %at
  call void @coder_symbols(ptr %d, ptr %to, i32 %count, i32 %step)
  br label %region
planed:
  %n1 = add i32 %n, 1
  br label %plane
end:
  %a = load i32, ptr %pc
  %byte = lshr i32 %a, 3
  %behind = add i32 %byte, 8
  %complete = icmp ule i32 %behind, %bytes
  %result = zext i1 %complete to i32
  br label %return
bad:
  br label %return
return:
  %r = phi i32 [ %result, %end ], [ 0, %bad ]
  ret i32 %r
}}
"""
