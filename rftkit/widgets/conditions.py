"""Conditions that a user types to filter rows, and the text of cells that they compare.

`parse_conditions` reads `label=no topic~"data export" words>20`; each `Condition` is then
evaluated on a whole column. Columns come from `rowsource`.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rftkit.errors import InputError
from rftkit.views.markup import missing

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = ["Condition", "cell_text", "column_texts", "parse_conditions"]


@dataclass(frozen=True, slots=True)
class Condition:
    """`key op value`, as `topic~privacy` or `score<0.5`."""

    key: str
    op: str
    value: str

    def holds(self, column: pd.Series[Any]) -> np.ndarray[Any, Any]:
        """Whether it holds for each row, as an array of bool; False for rows without the key.

        Raises:
            InputError: `<`, `<=`, `>` or `>=` with a value that is not a number.
        """
        import pandas as pd

        if self.op in _ORDERS or pd.api.types.is_numeric_dtype(column):
            return self._holds_of_numbers(column)
        is_text = pd.api.types.is_string_dtype(column) and column.dtype != object
        texts = column if is_text else pd.Series(column_texts(column))
        if self.op in ("~", "!~"):
            held = texts.str.contains(self.value, case=False, regex=False)
        else:
            held = texts.str.lower() == self.value.lower()
        holds = held.to_numpy(dtype=bool, na_value=False)
        present = column.notna().to_numpy(dtype=bool)
        return present & ~holds if self.op.startswith("!") else present & holds

    def _holds_of_numbers(self, column: pd.Series[Any]) -> np.ndarray[Any, Any]:
        import pandas as pd

        words = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
        try:
            wanted = words.get(self.value.lower())
            wanted = float(self.value) if wanted is None else wanted
        except ValueError:
            raise InputError(
                f"{self.key}{self.op}{self.value}: {self.value!r} is not a number; for text write "
                f"{self.key}={self.value} or {self.key}~{self.value}"
            ) from None
        numbers = pd.to_numeric(column, errors="coerce")
        held = _COMPARE[self.op](numbers, wanted) & numbers.notna()
        array: np.ndarray[Any, Any] = held.to_numpy(dtype=bool, na_value=False)
        return array


_ORDERS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = _ORDERS | {
    "=": operator.eq,
    "!=": operator.ne,
    "~": operator.eq,
    "!~": operator.ne,
}
_CONDITION = re.compile(r'\s*([^\s=!<>~"]+|"[^"]*")\s*(!=|!~|<=|>=|=|<|>|~)\s*("[^"]*"|\S+)\s*')


def parse_conditions(text: str) -> list[Condition]:
    """Conditions that must all hold: `compliant=no topic~"data export" words>20`.

    Raises:
        InputError: a part is not `key op value`.
    """
    found, position = [], 0
    while position < len(text.rstrip()):
        match = _CONDITION.match(text, position)
        if match is None:
            raise InputError(
                f"cannot read the filter at {text[position:].strip()!r}; write key=value, with "
                '= != ~ (contains) !~ < <= > >=, and "quotes" around what has spaces'
            )
        key, op, value = (part.strip('"') for part in match.groups())
        found.append(Condition(key, op, value))
        position = match.end()
    return found


def column_texts(column: pd.Series[Any]) -> list[str]:
    """Every cell as text: `yes` and `no`, JSON for lists and objects, empty for missing values."""
    values = column.to_list()
    if column.dtype.kind in "iu":
        return list(map(str, values))
    return [value if type(value) is str else cell_text(value) for value in values]


def cell_text(value: Any) -> str:
    """One cell as text; see `column_texts`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if missing(value) else str(value)
