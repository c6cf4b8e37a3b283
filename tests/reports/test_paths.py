"""A page says what files are called, not where they lie on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from rftkit import datasets
from rftkit.reports.render import without_folders


def test_no_folder_of_this_machine_is_in_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    given = tmp_path / "a & b.jsonl"
    given.write_text("{}")
    bundled = datasets.load("tiny_copy").train
    page = (
        f"<p>{given}:3</p><p>{tmp_path}/a &amp; b.jsonl</p><p>{Path.cwd()}/mine.jsonl</p>"
        f"<p>{bundled}</p><p>{Path.home()}/other.jsonl</p><p>https://example.org/tmp/a</p>"
        f"<p>File {Path(pytest.__file__)}:3</p>"
    )
    assert without_folders(page, [str(given), ["x"], 3]) == (
        "<p>a & b.jsonl:3</p><p>a & b.jsonl</p><p>mine.jsonl</p><p>tiny_copy/train.jsonl</p>"
        "<p>~/other.jsonl</p><p>https://example.org/tmp/a</p><p>File pytest/__init__.py:3</p>"
    )
