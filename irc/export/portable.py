"""Standard ONNX for other runtimes: what they have no kernels for, said in a way that they have."""

from __future__ import annotations

from irc.ir.graph import Model, Value
from irc.ir.types import Constant, DType

_WIDER = {DType.INT2: DType.INT4, DType.UINT2: DType.UINT4}


def make_portable(model: Model) -> int:
    """Store numbers of 2 bits in 4, in place: the same values in a type that runtimes know. Returns how many constants
    were."""
    count = 0
    for value in list(model.graph.constants.values()):
        if value.constant is not None and value.constant.dtype in _WIDER and _only_restored(value):
            _widen(value, _WIDER[value.constant.dtype])
            count += 1
    return count


def _only_restored(value: Value) -> bool:
    """Whether each reader gives real numbers, whatever the type of this one."""
    if value.is_output:
        return False
    return bool(value.uses) and all(u.node.is_op("DequantizeLinear", "Cast") for u in value.uses)


def _widen(value: Value, dtype: DType) -> None:
    assert value.constant is not None
    value.constant = Constant.of(value.constant.numpy().astype(dtype.numpy), dtype)
    value.type = value.constant.type
