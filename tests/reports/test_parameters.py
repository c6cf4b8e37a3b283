"""Parameters of a notebook: read from its cell without running it, checked before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from rftkit.errors import InputError, ReportError
from rftkit.reports import parameters
from rftkit.reports.grid import read_grid
from rftkit.reports.parameters import checked, declared, from_text

CELL = """count: int = 1  # how many
rate: float = 1.0
name: str = ''
on: bool = False
shares: list[float] = []
mode: Literal['fast', 'slow'] = 'fast'
maybe: str | None = None
where: Path = None
plain = 2.5
free = None
import os
"""


def known(source: str = CELL) -> Any:
    cell = new_code_cell(source, metadata={"tags": ["parameters"]})
    return declared(new_notebook(cells=[cell]), "n.ipynb")


def test_every_assignment_is_a_parameter_and_nothing_else():
    assert list(known()) == [
        *("count", "rate", "name", "on", "shares", "mode", "maybe", "where", "plain", "free")
    ]
    assert known()["mode"].default == "'fast'"


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("count 8", 8),
        ("rate 8", 8),
        ("rate 3e-4", 3e-4),
        ("name 8", "8"),  # text stays what was typed
        ("name true", "true"),
        ("on true", True),
        ("on True", True),
        ("shares [1, 0.5]", [1, 0.5]),
        ("mode slow", "slow"),
        ("maybe x", "x"),
        ("where a/b", "a/b"),
        ("plain 1", 1),
        ("free [1]", [1]),
    ],
)
def test_words_become_what_the_parameter_wants(typed, value):
    name, _, words = typed.partition(" ")

    assert from_text(known(), [(name, words)], "n") == {name: value}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("count", 1.5, "must be int, found float 1.5"),
        ("count", True, "must be int, found bool True"),
        ("shares", [1, "x"], "must be list[float], found list [1, 'x']"),
        ("mode", "medium", "must be Literal['fast', 'slow'], found str 'medium'"),
        ("maybe", 3, "must be str | None, found int 3"),
        ("plain", "x", "must be float, found str 'x'"),
    ],
)
def test_a_wrong_type_is_refused_in_words(name, value, said):
    with pytest.raises(ReportError) as caught:
        checked(known(), {name: value}, "n.ipynb")
    assert said in str(caught.value)


@pytest.mark.parametrize("value", [(1, 2), [1, 2]])
def test_a_tuple_is_given_as_a_list(value):
    cell = "pair: tuple[int, int] = (0, 0)\nmany: list[tuple[str, float]] = []\nany: tuple = ()"
    assert checked(known(cell), {"pair": value}, "n") == {"pair": [1, 2]}
    assert checked(known(cell), {"many": [("a", 1.5)]}, "n") == {"many": [["a", 1.5]]}
    assert from_text(known(cell), [("pair", "[1, 2]"), ("any", "[]")], "n") == {
        "pair": [1, 2], "any": [],
    }  # fmt: skip
    with pytest.raises(ReportError, match=r"must be tuple\[int, int\], found list"):
        checked(known(cell), {"pair": [1, 2, 3]}, "n")


def test_tuples_and_none_are_taken_where_they_fit():
    values = {"shares": (0.5,), "maybe": None}
    assert checked(known(), values, "n") == {"shares": [0.5], "maybe": None}


def test_numbers_and_arrays_of_numpy_are_plain_in_a_notebook():
    given = {"count": np.int64(4), "rate": np.float32(0.5), "on": np.bool_(True)}
    taken = checked(known(), {**given, "shares": np.array([0.5, 1.0]), "free": [np.int8(1)]}, "n")
    assert taken == {"count": 4, "rate": 0.5, "on": True, "shares": [0.5, 1.0], "free": [1]}
    assert [type(each) for each in taken.values()] == [int, float, bool, list, list]
    assert type(taken["free"][0]) is int


def test_a_cell_that_is_not_plain_python_is_refused():
    with pytest.raises(ReportError, match="line 1 is not Python"):
        known("%matplotlib inline")


def test_annotations_are_read_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    attack = (
        "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'catch_warnings'][0]"
        f"()._module.__builtins__['open']({str(mark)!r}, 'w')"
    )
    assert parameters._kind(attack) is Any
    assert parameters._kind("__import__('os').system('true')") is Any
    assert not mark.exists()
    for said, kind in {
        "int": int, "str | None": str | None, "Optional[int]": int | None,
        "list[str]": list[str], "dict[str, list[int]]": dict[str, list[int]],
        "Literal['a', 'b']": Literal["a", "b"], "'int'": int, "tuple[int, ...]": tuple[int, ...],
        "Union[int, str]": int | str, "pd.DataFrame": Any,
    }.items():  # fmt: skip
        assert parameters._kind(said) == kind, said


def test_a_grid_is_counted_before_it_is_made() -> None:
    lists = {f"p{n}": list(range(1000)) for n in range(20)}
    with pytest.raises(InputError, match="between 1 and 1000 can be run"):
        read_grid(lists)
