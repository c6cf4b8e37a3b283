"""What a changed model folder shows, and what it may change unnoticed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rftkit import fingerprints
from rftkit.fingerprints import difference, fingerprint

LARGE = 1000
"""Bytes of the largest file, where a block has 4 bytes and 8 blocks are read."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fingerprints, "BLOCK_BYTES", 4)
    monkeypatch.setattr(fingerprints, "NUM_BLOCKS", 8)
    (tmp_path / "blob").write_bytes(os.urandom(LARGE))
    folder = tmp_path / "model"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("# A model")
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")  # as in the hub's cache
    return folder


def write_at(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_an_untouched_folder_and_a_changed_model_card_differ_in_nothing(folder: Path) -> None:
    known = fingerprint(folder)
    assert list(known) == [
        "additional_chat_templates/rag.jinja", "config.json", "model.safetensors",
    ]  # fmt: skip
    (folder / "README.md").write_text("# Another text")
    (folder / ".DS_Store").write_text("")
    assert difference(folder, known) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "config.json").write_text("{ }"), "config.json is another"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "chat_template.jinja").touch(), "chat_template.jinja is new"),
        (
            lambda folder: (folder / "additional_chat_templates" / "rag.jinja").write_text(""),
            "additional_chat_templates/rag.jinja is another",
        ),
        *(
            (lambda folder, at=at: write_at(folder / "model.safetensors", at), "is another")
            for at in (0, 3, LARGE - 4, LARGE - 1)
        ),
        (
            lambda folder: os.truncate(folder / "model.safetensors", LARGE - 1),
            "model.safetensors is another",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(os.urandom(LARGE)),
            "model.safetensors is another",
        ),
    ],
)
def test_every_other_change_is_named(
    folder: Path, change: Callable[[Path], object], words: str
) -> None:
    known = fingerprint(folder)
    change(folder)
    assert words in str(difference(folder, known))


def test_a_large_file_costs_a_bounded_number_of_bytes(folder: Path) -> None:
    """So one bit between two blocks is not seen, as the docstring says."""
    known = fingerprint(folder)
    write_at(folder / "model.safetensors", 6)
    assert difference(folder, known) is None


def test_of_many_changes_the_first_are_named(folder: Path) -> None:
    known = fingerprint(folder)
    for name in "abcde":
        (folder / f"{name}.json").touch()
    assert difference(folder, known) == "a.json is new, b.json is new, c.json is new and 2 more"
