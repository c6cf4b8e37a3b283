"""`calculate_output` of a multi grader: only arithmetic over rewards.

Grammar: numbers, grader keys, `+ - * / ^`, parentheses, and the functions min max abs floor ceil
exp sqrt log (natural). `^` is power: it binds tighter than a sign in front of it (`-2^2` is -4) and
to the right. Python's parser reads the text; a whitelist turns the tree into closures, so no code
is ever evaluated. A formula without a finite real value gives a `formula_parse_error`, never a
number.
"""

from __future__ import annotations

import ast
import keyword
import math
import operator
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping

from rftkit.errors import GraderSpecError
from rftkit.graders.outcome import Fault

__all__ = ["FUNCTIONS", "Formula", "check_key", "compile_formula"]

Formula = Callable[[Mapping[str, float]], float]

FUNCTIONS: dict[str, tuple[Callable[..., float], int | None]] = {
    "min": (min, None),
    "max": (max, None),
    "abs": (abs, 1),
    "floor": (lambda x: float(math.floor(x)), 1),
    "ceil": (lambda x: float(math.ceil(x)), 1),
    "exp": (math.exp, 1),
    "sqrt": (math.sqrt, 1),
    "log": (math.log, 1),
}
"""Name -> (function, number of arguments, None for one or more)."""

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}
_MAX_LENGTH, _MAX_DEPTH = 10_000, 100


def compile_formula(text: str, keys: Iterable[str], *, param: str | None = None) -> Formula:
    """Turn a formula over `keys` into a function of their rewards.

    The function raises a `Fault` with the values that caused it where the formula is undefined:
    division by zero, a root or logarithm out of its domain, overflow.

    Raises:
        GraderSpecError: when the text is not a formula, or names something that is not a key.
    """
    known = frozenset(keys)

    def refuse(what: str) -> GraderSpecError:
        return GraderSpecError(
            f"`{param or 'calculate_output'}`: {what}; allowed are the keys "
            f"{', '.join(sorted(known))}, numbers, + - * / ^, parentheses and "
            f"{', '.join(FUNCTIONS)}",
            param=param,
        )

    evaluate = _build(_parse(text, refuse), known, refuse, 0)

    def formula(values: Mapping[str, float]) -> float:
        try:
            result = evaluate(values)
        except (ArithmeticError, ValueError) as error:
            raise Fault("formula_parse_error", _explain(text, values, str(error))) from None
        if not math.isfinite(result):
            raise Fault("formula_parse_error", _explain(text, values, f"the result is {result}"))
        return result

    return formula


def check_key(key: str, *, param: str | None = None) -> None:
    """Refuse a key that no formula could name.

    Raises:
        GraderSpecError: naming the key.
    """
    usable = key.isidentifier() and not keyword.iskeyword(key)
    if not usable or unicodedata.normalize("NFKC", key) != key:
        raise GraderSpecError(
            f"`{param}`: the key {key!r} cannot be used in a formula; use letters, digits and _",
            param=param,
        )


def _parse(text: str, refuse: Callable[[str], GraderSpecError]) -> ast.expr:
    if len(text) > _MAX_LENGTH:
        raise refuse(f"the formula has {len(text)} characters, more than {_MAX_LENGTH}")
    if "**" in text or "#" in text:
        raise refuse("write powers as a ^ b, and no comments")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(" ".join(text.split()).replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise refuse(f"cannot read {text[:200]!r}: {getattr(error, 'msg', error)}") from None


def _build(
    node: ast.expr, known: frozenset[str], refuse: Callable[[str], GraderSpecError], depth: int
) -> Formula:
    if depth > _MAX_DEPTH:
        raise refuse(f"the formula is nested deeper than {_MAX_DEPTH}")

    def build(child: ast.expr) -> Formula:
        return _build(child, known, refuse, depth + 1)

    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _constant(number, refuse)
        case ast.Name(id=name):
            if name not in known:
                raise refuse(f"{name!r} is not a grader")
            return operator.itemgetter(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = build(operand)
            return lambda values: -inner(values)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return build(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            apply, first, second = _OPERATORS[type(op)], build(left), build(right)
            return lambda values: apply(first(values), second(values))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return _call(name, [build(arg) for arg in args], refuse)
    raise refuse(f"{_spell(node)!r} is not allowed")


def _spell(node: ast.expr) -> str:
    try:
        return ast.unparse(node)[:80]
    except RecursionError:
        return f"a deeply nested {type(node).__name__}"


def _constant(number: float, refuse: Callable[[str], GraderSpecError]) -> Formula:
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise refuse("a number is too large")
    return lambda values: value


def _call(name: str, args: list[Formula], refuse: Callable[[str], GraderSpecError]) -> Formula:
    function, arity = FUNCTIONS[name]
    if len(args) != arity if arity else not args:
        raise refuse(f"{name} takes {arity or 'one or more'} argument(s), found {len(args)}")
    if len(args) == 1:
        only = args[0]
        return (lambda values: function(only(values))) if arity else only
    return lambda values: function([arg(values) for arg in args])


def _explain(text: str, values: Mapping[str, float], why: str) -> str:
    given = ", ".join(f"{key}={value!r}" for key, value in values.items())
    return f"{text!r} has no value at {given}: {why}"
