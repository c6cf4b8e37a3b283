"""Arguments that are empty, pipes, or given beside a folder: what commands make of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from conftest import GRADER, ROW

from rftkit.cli.app import main


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["rftkit", *words])
    with pytest.raises(SystemExit):
        main()
    out, err = capsys.readouterr()
    return out + err


@pytest.mark.parametrize(
    "words",
    [
        ["check", ""], ["check", "rows.jsonl", "--model", ""], ["check", "x", "--model="],
        ["eval", "show", ""], ["job", "show", ""], ["models", "delete", ""],
        ["report", "report_job", "-o", ""], ["import", "--dump="],
    ],
)  # fmt: skip
def test_an_empty_argument_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run(capsys, monkeypatch, *words)
    assert said.startswith("rftkit: an argument is empty: rftkit ")
    assert said.count("\n") == 1


def test_the_value_of_a_parameter_may_be_empty(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["-p", "job_id", ""], ["--parameter", "job_id="]):
        assert "an argument is empty" not in run(capsys, monkeypatch, "report", "nothing", *words)


def test_pipes_and_devices_are_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "grader.json").write_text(json.dumps(GRADER))
    for path in (os.devnull, str(tmp_path / "pipe")):
        for words in (
            ["check", path], ["dataset", "profile", path], ["dataset", "convert", path, "o.jsonl"],
            ["dataset", "split", path, "out"], ["grade", str(tmp_path / "grader.json"), path],
            ["grade", path, path],
        ):  # fmt: skip
            said = run(capsys, monkeypatch, *words)
            assert said.startswith(f"rftkit: {path}: is a pipe or a device"), words


def test_a_grader_beside_a_folder_is_not_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("train", "valid"):
        (folder / f"{name}.jsonl").write_bytes(ROW)
    (tmp_path / "grader.json").write_text(json.dumps(GRADER))
    words = ["check", str(folder), "--quick"]
    assert "mine has no test and no grader" in run(capsys, monkeypatch, *words)
    said = run(capsys, monkeypatch, *words, "-g", str(tmp_path / "grader.json"))
    assert "mine has no test\n" in said
    given = ["--test", str(folder / "valid.jsonl"), "-g", str(tmp_path / "grader.json")]
    assert "mine has no" not in run(capsys, monkeypatch, *words, *given)
