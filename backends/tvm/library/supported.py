"""Which road each operator of the standard takes, and why some take none.

The table of definitions is `table.py`; this file adds the reasons. A test compares both with the standard.
Conditions on single cases (element types, operands that must be constant) are in the definitions, as `Refused`.
"""

from __future__ import annotations

from typing import Literal

Road = Literal["definition", "function", "written out", "constant", "none"]

WRITTEN_OUT = ("If", "Loop", "Scan")
"""Control flow whose path is known when compiling."""

CONSTANT = ("Constant", "MelWeightMatrix", "Shape", "Size")
"""Results that are known when compiling."""

_DYNAMIC = "the shape of its result depends on the data"
_SEQUENCE = "sequences, optionals and maps are not compiled"
_STRING = "strings are not compiled"
_RANDOM = "its result is random"

REASONS: dict[str, str] = {
    "Bernoulli": _RANDOM,
    "ConcatFromSequence": _SEQUENCE,
    "ImageDecoder": "compressed images are not decoded",
    "Multinomial": _RANDOM,
    "NonMaxSuppression": _DYNAMIC,
    "NonZero": _DYNAMIC,
    "Optional": _SEQUENCE,
    "OptionalGetElement": _SEQUENCE,
    "OptionalHasElement": _SEQUENCE,
    "RandomNormal": _RANDOM,
    "RandomNormalLike": _RANDOM,
    "RandomUniform": _RANDOM,
    "RandomUniformLike": _RANDOM,
    "RegexFullMatch": _STRING,
    "SequenceAt": _SEQUENCE,
    "SequenceConstruct": _SEQUENCE,
    "SequenceEmpty": _SEQUENCE,
    "SequenceErase": _SEQUENCE,
    "SequenceInsert": _SEQUENCE,
    "SequenceLength": _SEQUENCE,
    "SequenceMap": _SEQUENCE,
    "SplitToSequence": _SEQUENCE,
    "StringConcat": _STRING,
    "StringNormalizer": _STRING,
    "StringSplit": _STRING,
    "TfIdfVectorizer": _STRING,
    "Unique": _DYNAMIC,
}
"""Operators of the default domain that are not lowered."""


def reason(op_type: str, domain: str = "") -> str:
    """Why an operator without a road has none; "" where nothing is known against it."""
    if domain == "ai.onnx.ml":
        return "classical machine learning is not compiled"
    if domain.startswith("ai.onnx.preview.training"):
        return "training is not compiled"
    if domain:
        return f"the domain {domain!r} is not known"
    return REASONS.get(op_type, "")


def road(op_type: str, domain: str = "") -> Road:
    """The road of an operator. "none" comes with a `reason`."""
    from irc.backends.tvm.library.table import OPERATORS

    if reason(op_type, domain):
        return "none"
    if (domain, op_type) in OPERATORS:
        return "definition"
    if op_type in WRITTEN_OUT:
        return "written out"
    if op_type in CONSTANT:
        return "constant"
    return "function" if has_body(op_type, domain) else "none"


def has_body(op_type: str, domain: str = "") -> bool:
    """Whether the newest version of the operator is defined by other operators."""
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, domain)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)
