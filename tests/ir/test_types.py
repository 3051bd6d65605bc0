"""Element types, shapes, constants, origins."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

from irc.ir.types import Constant, DType, Origin, SequenceType, Shape, TensorType


def test_dtype_numbers_are_those_of_the_installed_onnx() -> None:
    theirs = {name: number for name, number in onnx.TensorProto.DataType.items() if name != "UNDEFINED"}
    ours = {dtype.name: dtype.onnx for dtype in DType}
    assert {name: ours[name] for name in theirs} == theirs
    assert all(DType.from_onnx(number).name == name for name, number in theirs.items())


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.STRING], ids=lambda d: d.value)
def test_numpy_dtypes_and_bits_are_those_of_onnx(dtype: DType) -> None:
    assert dtype.numpy == onnx.helper.tensor_dtype_to_np_dtype(dtype.onnx)
    assert DType.from_numpy(dtype.numpy) is dtype
    zeros = onnx.numpy_helper.from_array(np.zeros(8, dtype.numpy))
    assert len(zeros.raw_data) * 8 == dtype.bits * 8
    assert Constant.of(np.zeros(8, dtype.numpy)).nbytes == len(zeros.raw_data)


def test_undefined_has_no_dtype() -> None:
    with pytest.raises(KeyError):
        DType.from_onnx(0)


def test_shape() -> None:
    shape = Shape.of(2, "N", None)
    assert (shape.rank, shape.is_static, str(shape)) == (3, False, "[2,N,?]")
    assert Shape.of(2, 3, 4).numel() == 24
    assert Shape.of().numel() == 1
    with pytest.raises(ValueError, match="not static"):
        shape.static()


def test_constant_loads_once_and_is_read_only() -> None:
    calls = []

    def load() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        calls.append(1)
        return np.arange(6, dtype=np.float32)

    constant = Constant(DType.FLOAT, (2, 3), load)
    assert calls == []
    assert constant.numpy().shape == (2, 3)
    assert constant.numpy() is constant.numpy()
    assert calls == [1]
    with pytest.raises(ValueError, match="read-only"):
        constant.numpy()[0, 0] = 1


def test_constant_does_not_copy_or_freeze_what_it_is_given() -> None:
    data = np.ones(4, np.float32)
    assert np.shares_memory(Constant.of(data).numpy(), data)
    assert data.flags.writeable


def test_digest_depends_on_type_shape_and_contents() -> None:
    data = np.arange(6, dtype=np.int32)
    same = Constant.of(data.reshape(2, 3)).digest()
    assert Constant.of(np.asfortranarray(data.reshape(2, 3))).digest() == same
    others = [data.reshape(3, 2), data.reshape(2, 3).view(np.float32), data.reshape(2, 3) + 1]
    assert same not in {Constant.of(o).digest() for o in others}


def test_digest_of_strings_and_empty_data() -> None:
    a, b = Constant.of(np.array(["a", "bc"], object)), Constant.of(np.array(["ab", "c"], object))
    assert a.digest() != b.digest()
    assert a.digest() == Constant.of(np.array([b"a", b"bc"], object)).digest()
    assert Constant.of(np.zeros((0, 3), np.float32)).digest() != Constant.of(np.zeros((3, 0), np.float32)).digest()


def test_sub_byte_sizes_are_packed() -> None:
    assert Constant.of(np.zeros(5, ml_dtypes.int4)).nbytes == 3
    assert Constant.of(np.zeros(5, ml_dtypes.int2)).nbytes == 2


def test_origin_merges_in_order_without_repeats() -> None:
    a = Origin(("conv",)).touched("fuse").touched("fuse")
    b = Origin(("relu", "conv"), ("clean",))
    assert Origin.merge(a, b) == Origin(("conv", "relu"), ("fuse", "clean"))
    assert str(Origin()) == "made by irc"
    assert str(Origin((), ("pad",))) == "made by pad"


def test_types_print_short() -> None:
    assert str(SequenceType(TensorType(DType.FLOAT, Shape.of(None, 3)))) == "seq<float32[?,3]>"
    assert str(TensorType(DType.INT8)) == "int8[*]"


def test_a_constant_may_be_loaded_as_a_numpy_scalar() -> None:
    one = np.ones((), np.float32)
    constant = Constant(DType.FLOAT, (), lambda: one * np.float32(2))
    assert constant.numpy().shape == ()
    assert constant.digest() == Constant.of(np.array(2, np.float32)).digest()
