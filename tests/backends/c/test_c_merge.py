"""Kernels that differ in numbers become one function."""

from irc.backends.c.merge import merge


def kernel(name: str, count: int, factor: str = "2.0f") -> str:
    return f"static void {name}(float *y)\n{{\n    float t[N{count}];\n    y[{count}] = {factor} * 3 + t[0];\n}}\n"


def test_numbers_become_parameters() -> None:
    (made,) = merge({"a": kernel("a", 4), "b": kernel("b", 7, "(-0.5f)")})
    assert made.integers == {"a": ("4",), "b": ("7",)}
    assert made.reals == {"a": ("2.0f",), "b": ("(-0.5f)",)}
    assert "float t[7];" in made.text
    assert "y[q0] = r0 * 3 + t[0];" in made.text


def test_one_kernel_keeps_its_numbers() -> None:
    (made,) = merge({"a": kernel("a", 4)})
    assert made.integers == {}
    assert "y[4] = 2.0f * 3" in made.text


def test_equal_kernels_are_one() -> None:
    (made,) = merge({"a": kernel("a", 4), "b": kernel("b", 4)})
    assert made.symbols == ("a", "b")
    assert made.integers == made.reals == {}


def test_other_code_stays_apart() -> None:
    assert len(merge({"a": kernel("a", 4), "b": kernel("b", 4).replace("+", "-")})) == 2


def test_texts_of_several_functions_stay_as_they_are() -> None:
    assert len(merge({s: kernel(f"{s}_0", 4) + kernel(s, 4) for s in ("a", "b")})) == 2


def test_tables_are_as_narrow_as_their_numbers() -> None:
    for largest, wanted in ((32767, "int16_t"), (32768, "int32_t")):
        (made,) = merge({"a": kernel("a", 4), "b": kernel("b", largest)})
        assert made.integer_type == wanted
        assert f"const {wanted} *IRC_RESTRICT q_" in made.text
        assert "const int32_t q0 = q_[0];" in made.text
