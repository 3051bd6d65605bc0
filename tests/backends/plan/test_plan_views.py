"""Strided views against numpy, over all small cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from irc.backends.tvm.plan.views import View, collapse, reshape_strides, row_major, strides_in_order


def strided(data: np.ndarray, shape, strides, offset: int = 0) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(data[offset:], shape, [s * data.itemsize for s in strides])


def factorizations(n: int, rank: int) -> list[tuple[int, ...]]:
    if rank == 0:
        return [()] if n == 1 else []
    return [(d, *rest) for d in range(1, n + 1) if n % d == 0 for rest in factorizations(n // d, rank - 1)]


def sources() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes with strides of transposed, sliced and broadcast arrays."""
    found = []
    for shape in itertools.product((1, 2, 3, 4), (1, 2, 6), (1, 3)):
        base = np.empty((2 * shape[0], shape[1] + 1, shape[2]), np.int8)
        arrays = [
            np.empty(shape, np.int8),
            base[::2, : shape[1]],
            base[: shape[0], 1:],
            np.broadcast_to(np.empty((shape[0], 1, shape[2]), np.int8), shape),
            np.broadcast_to(np.empty((1, shape[1], 1), np.int8), shape),
        ]
        for a in arrays:
            found += [(a.transpose(o).shape, a.transpose(o).strides) for o in itertools.permutations(range(3))]
    return sorted(set(found))


def test_reshapes_are_numpys() -> None:
    """A view where numpy has one, with the same elements; None where numpy has to copy."""
    count = 0
    for shape, strides in sources():
        size = 1 + sum((d - 1) * s for d, s in zip(shape, strides, strict=True))
        data = np.arange(size, dtype=np.int64)
        source = strided(data, shape, strides)
        for wanted in factorizations(math.prod(shape), 2) + factorizations(math.prod(shape), 3):
            got = reshape_strides(shape, strides, wanted)
            try:
                np.reshape(source, wanted, copy=False)
            except ValueError:
                assert got is None, (shape, strides, wanted)
            else:
                assert got is not None, (shape, strides, wanted)
                np.testing.assert_array_equal(strided(data, wanted, got), source.reshape(wanted))
            count += 1
    assert count > 3000


def test_reshape_of_nothing_and_of_scalars() -> None:
    assert reshape_strides((0, 3), (3, 1), (3, 0)) is not None
    assert reshape_strides((), (), (1, 1)) == (1, 1)
    assert reshape_strides((1, 1), (7, 9), ()) == ()


def test_views_follow_numpy_through_chains() -> None:
    """Random chains of transposes, slices, broadcasts and reshapes address what numpy addresses."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        shape = tuple(int(d) for d in rng.integers(1, 5, 3))
        data = np.arange(math.prod(shape), dtype=np.int64)
        array, view = data.reshape(shape), View(0, "int64", shape, row_major(shape))
        for _ in range(4):
            kind = rng.integers(4)
            if kind == 0:
                order = tuple(int(i) for i in rng.permutation(array.ndim))
                array, view = array.transpose(order), view.transposed(order)
            elif kind == 1:
                starts = [int(rng.integers(d)) for d in array.shape]
                steps = [int(rng.choice([1, 2, -1])) for _ in array.shape]
                cut = tuple(slice(a, None, s) for a, s in zip(starts, steps, strict=True))
                array = array[cut]
                view = view.sliced(starts, array.shape, steps)
            elif kind == 2:
                wide = (2, *(d if d > 1 else int(rng.integers(1, 4)) for d in array.shape))[-4:]
                if len(wide) < array.ndim:
                    continue
                try:
                    array = np.broadcast_to(array, wide)
                except ValueError:
                    continue
                view = view.broadcast_to(wide)
            else:
                wanted = factorizations(array.size, 2)[int(rng.integers(len(factorizations(array.size, 2))))]
                reshaped = view.reshaped(wanted)
                if reshaped is None:
                    continue
                array, view = array.reshape(wanted), reshaped
            assert view.shape == array.shape
            places = view.offset + sum(
                index * stride for index, stride in zip(np.indices(view.shape), view.strides, strict=True)
            )
            np.testing.assert_array_equal(data[places], array)


def test_collapse_visits_the_same_places_in_the_same_order() -> None:
    rng = np.random.default_rng(1)
    merged_some = 0
    for _ in range(400):
        shape = tuple(int(d) for d in rng.integers(1, 4, 4))
        lists = []
        for _ in range(2):
            strides = list(row_major(shape))
            for i in range(4):
                if rng.random() < 0.2:
                    strides[i] = int(rng.choice([0, 40, strides[i] * 2]))
            lists.append(strides)
        dims, merged = collapse(shape, lists)
        assert all(d != 1 for d in dims)
        merged_some += len(dims) < sum(d != 1 for d in shape)
        for strides, kept in zip(lists, merged, strict=True):
            assert len(kept) == len(dims)
            before = sum(i * s for i, s in zip(np.indices(shape), strides, strict=True)) + np.zeros(shape, int)
            after = sum((i * s for i, s in zip(np.indices(dims), kept, strict=True)), np.zeros(dims, int))
            np.testing.assert_array_equal(before.reshape(-1), after.reshape(-1))
    assert merged_some > 100


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_orders(order: tuple[int, ...]) -> None:
    shape = (2, 3, 4)
    strides = strides_in_order(shape, order)
    np.testing.assert_array_equal(
        strided(np.arange(24), shape, strides),
        np.arange(24).reshape([shape[i] for i in order]).transpose(np.argsort(order)),
    )
    view = View(0, "int8", shape, strides)
    assert view.order == order
    assert view.is_contiguous == (order == (0, 1, 2))
    assert view.extent == 24


def test_halo_goes_with_transposes_and_with_dimensions_that_slices_leave_whole() -> None:
    view = View(0, "int8", (1, 2, 3), (20, 1, 5), 5, ((0, 0), (0, 3), (1, 1)), 7.0)
    turned = view.transposed((0, 2, 1))
    assert turned.halo == ((0, 0), (1, 1), (0, 3))
    assert turned.fill == 7.0
    assert view.sliced((0, 0, 1), (1, 2, 2), (1, 1, 1)).halo == ((0, 0), (0, 3), (0, 0))
    assert view.sliced((0, 1, 0), (1, 1, 3), (1, 1, 1)).halo == ((0, 0), (0, 0), (1, 1))
    assert view.broadcast_to((4, 2, 3)).halo is None
