"""Debug information and unused helpers go, code and target stay."""

from irc.backends.tvm.slim import align_stack, assembly_from_ll, object_from_assembly, object_from_ll, slim_ll

FLAG = '!2 = !{i32 2, !"tvm_target", !"{\\22kind\\22:\\22llvm\\22,\\22mtriple\\22:\\22x86_64-linux-gnu\\22}"}'
HEAD = """; ModuleID = 'TVMMod'
target datalayout = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-f80:128-n8:16:32:64-S128"
target triple = "x86_64-linux-gnu"

@llvm.global_ctors = appending global [0 x { i32, ptr, ptr }] zeroinitializer
@text = private constant [8 x i8] c"a, !x !1"
"""
HELPER = """
define weak dso_local float @__extendhfsf2(half %a0) local_unnamed_addr section ".text.tvm.fp16.conv" {
b0:
  %v0 = tail call half @llvm.fabs.f16(half %a0)
  %v1 = fpext half %v0 to float
  ret float %v1
}

declare half @llvm.fabs.f16(half)
"""
TAIL = f"""
!llvm.dbg.cu = !{{!0}}
!llvm.module.flags = !{{!2, !3}}
!0 = distinct !DICompileUnit(language: DW_LANG_C, file: !1, emissionKind: FullDebug)
!1 = !DIFile(filename: "x", directory: ".")
{FLAG}
!3 = !{{i32 4, !"Debug Info Version", i32 3}}
!4 = !{{!4, !4, i64 0}}
!5 = distinct !DISubprogram(name: "copy", scope: !1, file: !1, unit: !0)
!6 = !DILocation(line: 0, scope: !5)
"""


def copy_of(kind: str) -> str:
    return f"""
define dllexport void @copy(ptr noalias %x, ptr noalias %y) local_unnamed_addr !dbg !5 {{
    #dbg_value(ptr %x, !5, !DIExpression(), !6)
  %v = load {kind}, ptr %x, align 4, !dbg !6, !tbaa !4
  store {kind} %v, ptr %y, align 4, !tbaa !4, !dbg !6
  ret void, !dbg !6
}}
"""


def test_only_code_and_target_remain():
    slim = slim_ll(HEAD + copy_of("float") + HELPER + TAIL)
    assert "!dbg" not in slim
    assert "!tbaa" not in slim
    assert "__extendhfsf2" not in slim
    assert "llvm.fabs.f16" not in slim
    assert "global_ctors" not in slim
    assert 'c"a, !x !1"' in slim
    assert "  %v = load float, ptr %x, align 4\n  store float %v, ptr %y, align 4\n  ret void\n" in slim
    assert slim.endswith("!llvm.module.flags = !{!0}\n" + FLAG.replace("!2", "!0") + "\n")
    assert slim_ll(slim) == slim


def test_helpers_stay_where_half_is_used():
    slim = slim_ll(HEAD + copy_of("half") + HELPER + TAIL)
    assert "define internal float @__extendhfsf2" in slim
    assert "declare half @llvm.fabs.f16" in slim


def test_object_defines_the_symbol_and_nothing_else_of_ours():
    data = object_from_ll(slim_ll(HEAD + copy_of("float") + HELPER + TAIL))
    assert data[:4] == b"\x7fELF"
    assert b"\0copy\0" in data
    assert b"__extendhfsf2" not in data
    assert b".debug" not in data


def test_functions_that_are_defined_align_their_stack() -> None:
    text = (
        "define void @k(ptr %x) #0 {\n}\n\ndeclare float @f() #1\n\nattributes #0 = { nounwind }\nattributes #1 = { }\n"
    )
    aligned = align_stack(text)
    assert 'attributes #0 = { "stackrealign" nounwind }' in aligned
    assert "attributes #1 = { }" in aligned


def test_assembly_becomes_the_same_object() -> None:
    text = slim_ll(HEAD + copy_of("float") + TAIL)
    assert object_from_assembly(assembly_from_ll(text), text) == object_from_ll(text)
