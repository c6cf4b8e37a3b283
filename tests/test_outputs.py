"""No command writes over what it reads, under any name that the file system takes for it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

from rftkit import graders, reports
from rftkit.cli import app as cli
from rftkit.errors import InputError, RftkitError
from rftkit.wholefile import check_output, write_whole

ROW = {"messages": [{"role": "user", "content": "q"}], "answer": "a"}
GRADER = {
    "type": "string_check",
    "name": "eq",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "data.jsonl").write_text(json.dumps(ROW) + "\n")
    (folder / "grader.json").write_text(json.dumps(GRADER))
    made = new_notebook(
        cells=[new_code_cell("labels: str = ''\n", metadata={"tags": ["parameters"]})]
    )
    nbformat.write(made, folder / "mine.ipynb")
    return folder


WAYS: dict[str, Callable[[Path], Path]] = {
    "itself": lambda path: path,
    "relative": lambda path: Path("..") / path.parent.name / path.name,
    "a symbolic link": lambda path: _linked(path, os.symlink),
    "a hard link": lambda path: _linked(path, os.link),
}


def _linked(path: Path, link: Callable[[Path, Path], None]) -> Path:
    other = path.with_name(f"link{path.suffix}")
    link(path, other)
    return other


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("given", "command"),
    [
        ("data.jsonl", "check data.jsonl --quick --html OUT"),
        ("grader.json", "check data.jsonl -g grader.json --quick --html OUT"),
        ("data.jsonl", "dataset profile data.jsonl -o OUT"),
        ("grader.json", "dataset profile data.jsonl -g grader.json -o OUT"),
        ("data.jsonl", "dataset convert data.jsonl OUT"),
        ("data.jsonl", "dataset sample data.jsonl OUT --rows 1"),
        ("mine.ipynb", "report mine.ipynb -o OUT"),
        ("data.jsonl", "report mine.ipynb -p labels data.jsonl -o OUT"),
    ],
)
def test_an_input_is_never_an_output(files: Path, given: str, command: str, way: str) -> None:
    before = (files / given).read_bytes()
    out = WAYS[way](files / given)
    words = [str(out) if word == "OUT" else word for word in command.split()]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code != 0
    assert isinstance(done.exception, RftkitError), done.output
    assert (files / given).read_bytes() == before


def test_a_report_keeps_its_own_notebook(files: Path) -> None:
    before = (files / "mine.ipynb").read_bytes()
    with pytest.raises(RftkitError, match="would destroy it"):
        reports.run("mine.ipynb", "mine.html", keep_notebook=True)
    (files / "page-rows.csv").write_text("a,b\n")
    with pytest.raises(RftkitError, match="may write over"):
        reports.run("mine.ipynb", "page.html", csv=True, labels="page-rows.csv")
    assert (files / "mine.ipynb").read_bytes() == before


def test_a_journal_of_grades_is_not_the_answers(files: Path) -> None:
    before = (files / "data.jsonl").read_bytes()
    with pytest.raises(InputError, match="would destroy it"):
        graders.grade_many(GRADER, "data.jsonl", journal="data.jsonl", answer="answer")
    samples = [{"item": {"answer": "a"}, "sample": "a"}]
    for journal in ("data.jsonl", "grader.json"):
        with pytest.raises(InputError, match="something else than grades"):
            graders.grade_many(GRADER, samples, journal=journal)
    assert (files / "data.jsonl").read_bytes() == before


def test_a_place_that_cannot_be_written_is_said_before_any_work(files: Path) -> None:
    assert (
        check_output(files / "new" / "deep" / "page.html") == files / "new" / "deep" / "page.html"
    )
    with pytest.raises(InputError, match="is a folder"):
        check_output(files)
    with pytest.raises(InputError, match="is not a folder"):
        check_output(files / "data.jsonl" / "page.html")


REPLACED = "is a device or a pipe, not a file that can be replaced"


@pytest.mark.skipif(os.name != "posix", reason="devices and pipes of POSIX")
@pytest.mark.parametrize("path", ["pipe", "link"])
def test_a_pipe_is_never_replaced(files: Path, path: str) -> None:
    """As root, `-o /dev/null` renamed a file over the device, for every process of the machine."""
    os.mkfifo(files / "pipe")
    os.symlink(files / "pipe", files / "link")
    done = CliRunner().invoke(cli.app, ["dataset", "profile", "data.jsonl", "-o", path])
    assert isinstance(done.exception, InputError)
    assert REPLACED in str(done.exception)
    with pytest.raises(InputError, match=REPLACED):
        write_whole(files / path, "x")
    assert (files / "pipe").is_fifo()
    assert (files / "link").is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="devices of POSIX")
@pytest.mark.parametrize("path", ["/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_device_is_refused_before_any_work(path: str) -> None:
    """Only asked, never tried: a test that failed would break the machine."""
    with pytest.raises(InputError, match=REPLACED):
        check_output(path)


def test_no_file_of_a_folder_that_is_read_is_replaced(files: Path) -> None:
    (files / "dump").mkdir()
    manifest = files / "dump" / "manifest.json"
    manifest.write_text("{}")
    os.symlink(manifest, files / "link.csv")
    for out in ("dump/manifest.json", "dump/../dump/manifest.json", "link.csv"):
        command = ["eval", "compare", "evalrun_1", "--dump", "dump", "--csv", out]
        done = CliRunner().invoke(cli.app, command)
        assert "is what is read here" in str(done.exception), out
        with pytest.raises(RftkitError, match="is what is read here"):
            reports.run(files / "mine.ipynb", out, labels="dump")
    assert check_output("dump/new.csv", ["dump"]) == Path("dump/new.csv")
    assert manifest.read_text() == "{}"


@pytest.fixture
def folder(files: Path) -> Path:
    """A dataset folder with all its parts."""
    made = files / "tickets"
    made.mkdir()
    for part in ("train", "valid", "test"):
        (made / f"{part}.jsonl").write_text(json.dumps(ROW) + "\n")
    (made / "grader.json").write_text(json.dumps(GRADER))
    schema = {"name": "a", "schema": {"type": "object", "properties": {}}}
    form = {"type": "json_schema", "json_schema": schema}
    (made / "response_format.json").write_text(json.dumps(form))
    (made / "tools.json").write_text("[]")
    return made


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("part", ["train.jsonl", "test.jsonl", "grader.json", "tools.json"])
@pytest.mark.parametrize(
    "command",
    [
        "check tickets --quick --html OUT",
        "ladder tickets -m tiny -o OUT",
        "prompt optimize tickets -m tiny -o OUT",
    ],
)
def test_no_part_of_a_dataset_folder_is_replaced(
    folder: Path, command: str, part: str, way: str
) -> None:
    """The grader is read from the folder, though no option names it."""
    before = (folder / part).read_bytes()
    out = Path("tickets/../tickets", part) if way == "relative" else WAYS[way](folder / part)
    done = CliRunner().invoke(cli.app, [str(out) if w == "OUT" else w for w in command.split()])
    assert "is what is read here" in str(done.exception), done.output
    assert (folder / part).read_bytes() == before


def test_a_page_may_be_in_the_folder_that_is_checked(folder: Path) -> None:
    command = ["check", "tickets", "--quick", "--html", str(folder / "page.html")]
    for _ in range(2):
        done = CliRunner().invoke(cli.app, command)
        assert "is what is read here" not in str(done.exception), done.output
        assert (folder / "page.html").is_file()


@pytest.mark.parametrize("name", ["page-rows.csv", "PAGE-rows.CSV"])
def test_no_table_of_a_page_replaces_a_file_of_a_folder_that_is_read(
    files: Path, name: str
) -> None:
    (files / "dump").mkdir()
    (files / "dump" / name).write_text("a,b\n")
    with pytest.raises(RftkitError, match="may write over"):
        reports.run("mine.ipynb", "dump/page.html", csv=True, labels="dump")
    assert (files / "dump" / name).read_text() == "a,b\n"
