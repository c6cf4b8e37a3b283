"""Datasets of the hub by name: fetched once for each state, read like any other saved one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rftkit import datasets
from rftkit.datasets import hub
from rftkit.datasets.places import find
from rftkit.errors import InputError, MissingExtraError

library = pytest.importorskip("datasets", reason="pip install datasets")
ROWS = [
    {"messages": [{"role": "user", "content": "a"}], "answer": "1"},
    {"messages": [{"role": "user", "content": "b"}], "answer": "2"},
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A hub with one dataset of two splits; what was asked of it."""
    splits = library.DatasetDict(
        {"train": library.Dataset.from_list(ROWS), "test": library.Dataset.from_list(ROWS[:1])}
    )
    calls: list[Any] = []

    def load(name: str, config: str | None, split: str | None) -> Any:
        calls.append((name, config, split))
        if name != "acme/rows":
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")
        return splits if split is None else splits[split]

    monkeypatch.setattr(library, "load_dataset", load)
    return calls


@pytest.mark.parametrize(
    ("source", "call", "num"),
    [
        ("hf://acme/rows", (None, None), 2),
        ("hf://acme/rows:test", (None, "test"), 1),
        ("hf://acme/rows/small:train", ("small", "train"), 2),
        (Path("hf://acme/rows:test"), (None, "test"), 1),  # one slash, as a command has it
    ],
)
def test_rows_are_those_of_the_split(
    asked: list[Any], source: str | Path, call: tuple[Any, Any], num: int
) -> None:
    rows = datasets.open(source)
    assert asked == [("acme/rows", *call)]
    answers = [each.row.item["answer"] for each in rows.page(0, 10) if each.row is not None]
    assert answers == [row["answer"] for row in ROWS[:num]]


def test_a_dataset_is_saved_once_for_each_state(asked: list[Any], home: Path) -> None:
    folder = find("hf://acme/rows")
    assert folder.parent == home / "hub" / "acme--rows"
    before = (folder / "state.json").stat().st_mtime_ns
    assert find("hf://acme/rows") == folder
    assert (folder / "state.json").stat().st_mtime_ns == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_check_takes_it(asked: list[Any]) -> None:
    found = datasets.check("hf://acme/rows")
    assert [each.code for each in found.findings if each.severity == "error"] == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf://acme", "hf://acme: expected hf://OWNER/NAME"),
        (Path("hf://acme"), "hf://acme: expected hf://OWNER/NAME"),
        ("hf:acme", "hf://acme: expected hf://OWNER/NAME"),
        (Path("hf://"), "hf://: expected hf://OWNER/NAME"),
        ("hf://acme/none", "cannot be fetched: Dataset 'acme/none' doesn't exist"),
        ("hf://acme/rows:valid", "cannot be fetched"),
    ],
)
def test_what_is_not_there_is_named(asked: list[Any], source: str | Path, said: str) -> None:
    with pytest.raises(InputError, match=said):
        find(source)


def test_splits_without_training_rows_must_be_named(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {"a": None, "b": None}
    monkeypatch.setattr(library, "load_dataset", lambda *_, **__: splits)
    with pytest.raises(InputError, match="name one of its splits a, b: hf://acme/rows:a"):
        find("hf://acme/rows")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"rftkit\[hub\]"):
        hub.fetched("hf://acme/rows")
