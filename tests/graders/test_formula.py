"""`calculate_output`: the same numbers as arithmetic, and words where there is no number."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rftkit.errors import GraderSpecError
from rftkit.graders.formula import compile_formula
from rftkit.graders.outcome import Fault

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3))


def evaluate(text: str, **values: float) -> float:
    return compile_formula(text, values)(values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5 * a + 0.5 * b", 2.5),
        ("a + b * 2", 8.0),
        ("(a + b) * 2", 10.0),
        ("2 ^ b", 8.0),
        ("2 ^ b ^ a", 512.0),
        ("-2 ^ 2", -4.0),
        ("2 ^ -1", 0.5),
        ("- -a", 2.0),
        ("+a", 2.0),
        ("a / b", 2 / 3),
        ("min(a, b, 1)", 1.0),
        ("max(a)", 2.0),
        ("abs(a - b)", 1.0),
        ("floor(a / b) + ceil(a / b)", 1.0),
        ("exp(0) + log(1) + sqrt(4)", 3.0),
        ("a / max(b, 1e-9)", 2 / 3),
        (" \n a +\n b ", 5.0),
    ],
)
def test_values(text: str, expected: float) -> None:
    assert evaluate(text, a=2.0, b=3.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a / (b - b)", "division by zero"),
        ("sqrt(0 - a)", "a=2.0, b=3.0"),
        ("log(b - b)", "math domain error"),
        ("(0 - a) ^ 0.5", "math domain error"),
        ("exp(9999)", "range"),
        ("10 ^ 400", "range"),
        ("1e308 * 1e308", "the result is inf"),
        ("0 ^ (0 - a)", "math domain error"),
        ("floor(1e308 * 1e308)", "infinity"),
    ],
)
def test_no_value(text: str, words: str) -> None:
    with pytest.raises(Fault) as caught:
        evaluate(text, a=2.0, b=3.0)
    assert caught.value.flag == "formula_parse_error"
    assert caught.value.outcome == "failed"
    assert words in caught.value.details


@pytest.mark.parametrize(
    "text",
    [
        "", "a +", "c", "a ** 2", "a // 2", "a % 2", "a < b", "a if a else b", "a and b", "not a",
        "[a]", "a[0]", "a.real", "'a'", "True", "1j", "lambda: 1", "pow(a, b)", "min()",
        "abs(a, b)", "min(a, key=b)", "min(*a)", "__import__('os')", "a := 1", "a) + (b",
        "a)", "(a", "a # b", "a; b", "1e999", "min",
        "+".join("a" * 6000), "(" * 300 + "a" + ")" * 300, "-" * 200 + "a", "a\x00",
    ],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(GraderSpecError) as caught:
        compile_formula(text, ["a", "b"], param="calculate_output")
    assert caught.value.param == "calculate_output"


expressions = st.recursive(
    st.sampled_from(["a", "b"]) | NUMBERS.map(lambda x: f"{abs(x)!r}"),
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner)
        | st.builds("-{}".format, inner)
        | st.builds("{}({}, {})".format, st.sampled_from(["min", "max"]), inner, inner)
        | st.builds("{}({})".format, st.sampled_from(["abs", "sqrt", "log", "exp"]), inner)
    ),
    max_leaves=20,
)


@given(text=expressions, a=NUMBERS, b=NUMBERS)
def test_same_as_python(text: str, a: float, b: float) -> None:
    names = {"min": min, "max": max, "abs": abs, "sqrt": math.sqrt, "log": math.log,
             "exp": math.exp, "a": a, "b": b, "__builtins__": {}}  # fmt: skip
    try:
        expected = float(eval(text, names))
    except (ArithmeticError, ValueError):
        expected = math.nan
    try:
        assert evaluate(text, a=a, b=b) == expected
    except Fault:
        assert not math.isfinite(expected)


@given(text=st.text())
def test_any_text(text: str) -> None:
    with contextlib.suppress(GraderSpecError, Fault):
        assert math.isfinite(evaluate(text, a=1.0, b=0.5))
