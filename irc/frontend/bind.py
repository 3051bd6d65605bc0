"""Binding of symbolic dimensions: `--shape x=1x3x224x224` and `--dim batch=1`.

Every dimension of an input has a name after import (unnamed ones get one like `x_dim2`), so every unknown can be
bound, and messages can say how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from irc.errors import OptionError, ShapeError, suggest
from irc.ir.graph import Graph, Model, Value
from irc.ir.infer import infer
from irc.ir.ops import is_control_flow
from irc.ir.types import Dim, OptionalType, SequenceType, Shape, SparseType, TensorType, ValueType

Binding = dict[str, int]


def name_unknown_dims(model: Model) -> None:
    """Give each unknown dimension of an input a symbol of its own, `INPUT_dimN`."""
    taken = set(symbols(model))
    for value in model.graph.inputs:
        if not isinstance(value.type, TensorType) or value.type.shape is None:
            continue
        dims = list(value.type.shape)
        for i, dim in enumerate(dims):
            if dim is None:
                dims[i] = _fresh(f"{value.name}_dim{i}", taken)
        value.type = TensorType(value.type.dtype, Shape(tuple(dims)))


def _fresh(base: str, taken: set[str]) -> str:
    name, n = base, 1
    while name in taken:
        n += 1
        name = f"{base}_{n}"
    taken.add(name)
    return name


def symbols(model: Model) -> dict[str, list[tuple[Value, int]]]:
    """Symbol -> where it stands in the inputs (input, axis)."""
    found: dict[str, list[tuple[Value, int]]] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, str):
                found.setdefault(dim, []).append((value, axis))
    return found


def bind(model: Model, shapes: Mapping[str, Sequence[int]], dims: Mapping[str, int]) -> None:
    """Set input shapes and the values of symbols, everywhere they occur, and infer all other shapes again.

    Raises OptionError for an input, rank or symbol that does not exist, or a value that contradicts the model.
    """
    if not shapes and not dims:
        return
    known = symbols(model)
    binding: Binding = {}
    for symbol, extent in dims.items():
        if symbol not in known:
            raise OptionError(
                f"the model has no dimension '{symbol}'", where=f"--dim {symbol}={extent}", hint=_offer(symbol, known)
            )
        _positive(extent, f"--dim {symbol}={extent}")
        binding[symbol] = extent
    new_shapes = {name: _shape_of(model, name, tuple(shape), binding) for name, shape in shapes.items()}
    for value in model.graph.inputs:
        if value.name in new_shapes and isinstance(value.type, TensorType):
            value.type = TensorType(value.type.dtype, Shape(new_shapes[value.name]))
        else:
            value.type = _substitute(value.type, binding)
    infer_afresh(model, binding)


def _offer(symbol: str, known: Mapping[str, object]) -> str:
    return suggest(symbol, known) if known else "leaving it out: every dimension of the inputs is fixed"


def _positive(extent: int, where: str) -> None:
    if extent < 1:
        raise OptionError("a dimension must be at least 1", where=where)


def _shape_of(model: Model, name: str, shape: tuple[int, ...], binding: Binding) -> tuple[int, ...]:
    """Check a whole shape against its input; its symbols join the binding."""
    where = f"--shape {name}={'x'.join(map(str, shape))}"
    value = next((v for v in model.graph.inputs if v.name == name), None)
    if value is None:
        names = [v.name for v in model.graph.inputs]
        raise OptionError(f"the model has no input '{name}'", where=where, hint=suggest(name, names))
    if not isinstance(value.type, TensorType):
        raise OptionError("this input is no tensor", where=where, got=str(value.type))
    for extent in shape:
        _positive(extent, where)
    if value.type.shape is None:
        return shape
    if value.type.shape.rank != len(shape):
        raise OptionError(
            "the number of dimensions differs",
            where=where,
            expected=f"{value.type.shape.rank}: {value.type.shape}",
            got=str(len(shape)),
        )
    for axis, (dim, extent) in enumerate(zip(value.type.shape, shape, strict=True)):
        if isinstance(dim, int) and dim != extent:
            raise OptionError(
                f"dimension {axis} is fixed in the model", where=where, expected=str(dim), got=str(extent)
            )
        if isinstance(dim, str) and binding.setdefault(dim, extent) != extent:
            raise OptionError(
                f"dimension '{dim}' gets two values", where=where, expected=str(binding[dim]), got=str(extent)
            )
    return shape


def _substitute(type: ValueType | None, binding: Binding) -> ValueType | None:
    """The type with bound symbols replaced."""

    def dim(d: Dim) -> Dim:
        return binding.get(d, d) if isinstance(d, str) else d

    if isinstance(type, TensorType | SparseType):
        if type.shape is None:
            return type
        shape = Shape(tuple(dim(d) for d in type.shape))
        return TensorType(type.dtype, shape) if isinstance(type, TensorType) else SparseType(type.dtype, shape)
    if isinstance(type, SequenceType | OptionalType):
        elem = _substitute(type.elem, binding)
        assert elem is not None
        return SequenceType(elem) if isinstance(type, SequenceType) else OptionalType(elem)
    return type


def infer_afresh(model: Model, binding: Binding | None = None) -> None:
    """Infer every type from the inputs, believing no declared one.

    What inference cannot tell (results of custom operators, extents that depend on data) keeps its old type, with
    the symbols of `binding` replaced.
    """
    old: list[tuple[Value, ValueType | None]] = []
    for graph in _graphs(model.graph):
        for node in graph.nodes:
            for value in node.outputs:
                old.append((value, _substitute(value.type, binding or {})))
                value.type = None
        if graph.parent is not None:
            for value in graph.inputs:
                value.type = _substitute(value.type, binding or {})
    infer(model)
    restored = False
    for value, before in old:
        merged = _merge(value.type, before)
        if merged != value.type:
            value.type, restored = merged, True
    if restored:
        infer(model)


def _graphs(graph: Graph) -> list[Graph]:
    """The graph and the bodies in it that inference sweeps; bodies of other operators keep what they declare."""
    found = [graph]
    for node in graph.nodes:
        if is_control_flow(node):
            for sub in node.subgraphs:
                found.extend(_graphs(sub))
    return found


def _merge(new: ValueType | None, old: ValueType | None) -> ValueType | None:
    """What inference found, completed by what the file declared."""
    if new is None:
        return old
    if not (isinstance(new, TensorType) and isinstance(old, TensorType)) or new.dtype != old.dtype:
        return new
    if new.shape is None:
        return old
    if old.shape is None or old.shape.rank != new.shape.rank:
        return new
    pairs = zip(new.shape, old.shape, strict=True)
    dims = tuple(b if a is None or (isinstance(a, str) and isinstance(b, int)) else a for a, b in pairs)
    return TensorType(new.dtype, Shape(dims))


def default_batch(model: Model) -> list[str]:
    """Bind a symbolic first dimension of each input to 1. Returns a note for each symbol bound."""
    first: dict[str, str] = {}
    for value in model.graph.inputs:
        if value.shape is not None and value.shape.rank and isinstance(value.shape[0], str):
            first.setdefault(value.shape[0], value.name)
    if first:
        bind(model, {}, dict.fromkeys(first, 1))
    return [
        f"dimension '{symbol}' of input '{name}' is taken as 1 (--dim {symbol}=N sets another)"
        for symbol, name in first.items()
    ]


def require_static(model: Model, *, everywhere: bool = False) -> None:
    """Raises ShapeError when an input is not of fixed shape; with `everywhere` also for results of nodes.

    The message names the first such value and the options that would fix it.
    """
    for value in model.graph.inputs:
        if isinstance(value.type, TensorType) and value.type.shape is None:
            raise ShapeError(
                f"the rank of input '{value.name}' is not known",
                where=model.name,
                hint=f"--shape {value.name}=1x3x224x224 (with its real dimensions)",
            )
    unbound = symbols(model)
    if unbound:
        value, axis = next(iter(unbound.values()))[0]
        raise ShapeError(
            f"dimension {axis} of input '{value.name}' is not fixed: {value.type}",
            where=model.name,
            hint=" ".join(f"--dim {name}=N" for name in unbound) + f" (or --shape {value.name}={_example(value)})",
        )
    if not everywhere:
        return
    for node in model.graph.walk():
        for value in node.outputs:
            if isinstance(value.type, TensorType) and (value.type.shape is None or not value.type.shape.is_static):
                raise ShapeError(
                    f"the shape of its result '{value.name}' depends on data: {value.type}",
                    where=f"{model.name}: {node.label}",
                )


def _example(value: Value) -> str:
    assert value.shape is not None
    return "x".join(str(d) if isinstance(d, int) else "N" for d in value.shape)
