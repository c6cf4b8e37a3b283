"""A table of one's own, from the first error to rows, a grader and a response format."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from rftkit import datasets, graders
from rftkit.cli import app as cli
from rftkit.datasets import Columns
from rftkit.datasets.columns import answer_names, plain_name
from rftkit.errors import InputError
from rftkit.widgets import GraderLab, RowBrowser, RowMaker
from rftkit.widgets.rowsource import FileSource

CASES = (
    ("The May invoice lists the licence twice, please correct it.", "billing", "charged twice"),
    ("I cannot log in since the update of yesterday.", "access", "the login fails"),
    ("How do I export\nmy data?", "other", "a question about a feature"),
    ("Please refund the seat that we cancelled.", "billing", "wants a refund"),
)


@pytest.fixture
def tickets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """20 tickets as somebody exports them; one has a line break in it."""
    monkeypatch.chdir(tmp_path)
    rows = [(f"{text} (case {n})", *rest) for n in range(5) for text, *rest in CASES]
    pd.DataFrame(rows, columns=["ticket", "category", "reason"]).to_csv("tickets.csv", index=False)
    return Path("tickets.csv")


def typed(*words: Any) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def proposed(text: str) -> list[str]:
    """The words of the command that a message proposes, as a shell reads them."""
    [line] = [line for line in text.splitlines() if "rftkit dataset convert" in line]
    return shlex.split(line[line.index("rftkit dataset convert") :])[1:]


def test_the_command_of_the_first_error_makes_rows_that_pass_the_check(tickets: Path) -> None:
    done = typed("check", tickets)
    assert done.exit_code == 1
    assert "tickets.csv:2: the row has no `messages`" in done.stdout  # line 1 has the names
    command = proposed(done.stdout)
    assert command[-4:] == ["--prompt", "Ticket: {ticket}", "--answer", "category,reason"]
    assert typed(*command).exit_code == 0
    [first, *rest] = datasets.read("tickets-rows.jsonl")
    assert len(rest) == 19
    assert first.messages == [{"role": "user", "content": f"Ticket: {CASES[0][0]} (case 0)"}]
    assert (first.item["category"], first.item["reason"]) == CASES[0][1:]
    assert json.loads(first.item["reference_answer"]) == {
        "category": "billing",
        "reason": "charged twice",
    }
    assert datasets.check("tickets-rows.jsonl").ok


def test_every_refusal_of_a_table_proposes_the_same_command(tickets: Path) -> None:
    command = "rftkit dataset convert tickets.csv tickets-rows.jsonl --prompt 'Ticket: {ticket}'"
    for refused in (
        lambda: datasets.read(tickets),
        lambda: datasets.split(tickets, "parts"),
        lambda: datasets.upload(None, tickets),  # type: ignore[arg-type]
        lambda: datasets.check(tickets).raise_for_errors(),
    ):
        with pytest.raises(InputError) as caught:
            refused()
        assert command in str(caught.value)
    assert command in typed("dataset", "convert", tickets, "rows.jsonl").stdout
    assert not Path("rows.jsonl").exists()  # nothing was made, so nothing is written
    assert command in str(RowBrowser(tickets))


def test_lines_are_those_of_the_file(tickets: Path) -> None:
    """Names, and records that span lines, count as they do in an editor."""
    lines = tickets.read_text().splitlines()
    for each in datasets.open(tickets):
        start = json.loads(each.raw)["ticket"].splitlines()[0]
        assert start in lines[each.line - 1]


@pytest.mark.parametrize(
    ("prompt", "answer", "message"),
    [
        ("Ticket: {tickt}", "category", "no column 'tickt'; did you mean ticket?"),
        ("Ticket: {ticket}", "raeson", "no column 'raeson'; did you mean reason?"),
        ("Ticket:", "category", "the prompt names no column"),
        (" ", "category", "the prompt is empty"),
    ],
)
def test_a_misspelt_column_is_named_before_anything_is_written(
    tickets: Path, prompt: str, answer: str, message: str
) -> None:
    done = typed("dataset", "convert", tickets, "r.jsonl", "--prompt", prompt, "--answer", answer)
    assert message in str(done.exception)
    assert not Path("r.jsonl").exists()


def test_json_in_a_prompt_is_plain_text_and_line_breaks_can_be_typed(tickets: Path) -> None:
    prompt = 'Ticket: {{ item.ticket }}\\nAnswer as {"category": …}.'
    words = ("--prompt", prompt, "--answer", "category", "--system", "Be brief.")
    assert typed("dataset", "convert", tickets, "r.jsonl", *words).exit_code == 0
    first = datasets.read("r.jsonl")[0]
    assert [each["content"] for each in first.messages] == [
        "Be brief.",
        f'Ticket: {CASES[0][0]} (case 0)\nAnswer as {{"category": …}}.',
    ]
    assert first.item["reference_answer"] == first.item["category"] == "billing"
    assert first.item["reason"] == "charged twice"  # other columns stay


def test_a_table_with_semicolons_and_names_with_blanks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        f'"Invoice {n}; payable soon, total {n},50";2026-01-{n + 10};{n},50' for n in range(12)
    ]
    Path("invoices.csv").write_text("\n".join(["text;due date;amount", *lines]))
    command = proposed(typed("check", "invoices.csv").stdout)
    assert command[-1] == "due date,amount"
    assert typed(*command).exit_code == 0
    items = [row.item for row in datasets.read("invoices-rows.jsonl")]
    assert items[1]["amount"] == "1,50"
    spec = datasets.draft_grader(items)
    format_ = datasets.draft_format(spec, items)
    assert format_ is not None
    assert set(format_["json_schema"]["schema"]["properties"]) == {"due date", "amount"}
    assert {each.item["due date"] for each in datasets.read("invoices-rows.jsonl")} == {
        f"2026-01-{n + 10}" for n in range(12)
    }


def test_a_record_without_a_prompt_is_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,label\nhello,a\n ,b\n")
    made = datasets.convert(path, tmp_path / "r.jsonl", columns=Columns("{text}", ("label",)))
    assert (made.num_rows, made.num_refused) == (1, 1)
    assert "t.csv:3: nothing in 'text'" in made.refused[0]


def test_a_file_of_rows_is_told_to_leave_the_prompt_out(tickets: Path) -> None:
    datasets.convert(tickets, "rows.jsonl", columns=Columns("{ticket}"))
    with pytest.raises(InputError, match="leave out --prompt"):
        datasets.convert("rows.jsonl", "again.jsonl", columns=Columns("{ticket}"))


names = st.text(st.characters(codec="utf-8", exclude_characters="{}"), min_size=1).filter(
    lambda name: name.strip() and plain_name(name) not in ("messages", "item", "reference_answer")
)
records = st.dictionaries(names, st.text(min_size=1), min_size=1, max_size=5).filter(
    lambda record: len({plain_name(name) for name in record}) == len(record)
)


@given(records)
def test_a_prompt_around_any_column_holds_its_text(record: dict[str, str]) -> None:
    name = next(iter(record))
    if not record[name].strip():
        return
    row = Columns(f"Read this: {{{name}}}").row(record)
    assert row["messages"][0]["content"] == f"Read this: {record[name]}"


@given(records)
def test_any_columns_can_be_typed_as_the_answer(record: dict[str, str]) -> None:
    first = next(iter(record))
    if not record[first].strip():
        return
    answer = answer_names(",".join(map(plain_name, record)), list(record))
    row = Columns(f"{{{first}}}", answer).row(record)
    assert {plain_name(name): value for name, value in record.items()}.items() <= row.items()


SPREADSHEETS = {
    "sep=;\r\n": ("Text; Due\r\n", "hello;2026-01-02\r\n"),
    "": ('"Letter, as\nscanned",Due ,"Amount\n(EUR)",,\n', "hello,2026-01-02,12,,\n"),
}


@pytest.mark.parametrize("first", SPREADSHEETS)
def test_tables_as_spreadsheets_write_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Names with commas, line breaks and spaces, empty columns, a line that names the separator."""
    monkeypatch.chdir(tmp_path)
    names, line = SPREADSHEETS[first]
    Path("t.csv").write_text("\ufeff" + first + names + line * 12, newline="")
    rows = list(datasets.open("t.csv"))
    lines = Path("t.csv").read_text(encoding="utf-8-sig").split("\n")
    assert all("hello" in lines[each.line - 1] for each in rows)
    command = proposed(typed("check", "t.csv").stdout)
    assert typed(*command).exit_code == 0
    item = datasets.read("t-rows.jsonl")[0].item
    assert item["Due"] == "2026-01-02"
    assert item["messages"][0]["content"].endswith(": hello")
    assert item.keys() <= {"messages", "Due", "Amount (EUR)", "reference_answer"}


def test_a_table_in_another_encoding_is_told_the_command_that_changes_it(
    tickets: Path, tmp_path: Path
) -> None:
    words = tickets.read_text().replace("ticket", "Café", 1).replace("May", "März")
    Path("old.csv").write_bytes(words.encode("windows-1252"))
    said = typed("check", "old.csv").stdout
    assert "iconv -f windows-1252 -t utf-8 old.csv > old-utf8.csv" in said
    assert "(0xe4" in said or "(0xe9" in said  # the byte of the file
    Path("old-utf8.csv").write_bytes(Path("old.csv").read_bytes().decode("cp1252").encode())
    assert "--prompt 'Café: {Café}'" in typed("check", "old-utf8.csv").stdout


def test_columns_that_are_called_like_keys_of_rows(tmp_path: Path) -> None:
    lines = [f"Is case {n} allowed by the rules?,k{n},yes" for n in range(12)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["text,item,reference_answer", *lines]))
    command = proposed(typed("check", path).stdout)
    assert command[-2:] == ["--answer", "reference_answer"]
    assert typed(*command).exit_code == 0
    assert datasets.read(tmp_path / "t-rows.jsonl")[0].item["reference_answer"] == "yes"


def test_the_panel_makes_the_same_rows(tickets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFTKIT_MODE", "live")
    browser = RowBrowser(tickets)
    browser.widget()
    maker = browser._maker
    assert maker is not None
    assert "has no prompts yet" in maker._top.value
    maker._prompt.value = "Ticket: {tickt}"
    assert "did you mean ticket?" in maker._view.value
    maker._prompt.value = "Ticket: {ticket}"
    maker._go.click()
    assert maker.error == ""
    assert "✓ 20 rows are in tickets-rows.jsonl" in maker._done.value
    assert browser.data()["category"].iloc[0] == "billing"  # the browser shows the rows now
    command = shlex.split(RowMaker("tickets.csv", target="again.jsonl").command)[1:]
    assert typed(*command).exit_code == 0
    assert Path("again.jsonl").read_bytes() == Path("tickets-rows.jsonl").read_bytes()
    maker._go.click()
    assert "exists already" in maker.error


def test_rows_that_are_still_counted_are_shown_once_they_are(
    tickets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(FileSource):
        """A file whose index is not there at first."""

        is_complete = False

        def __len__(self) -> int:
            return len(self.rows) if self.is_complete else 0

    monkeypatch.setenv("RFTKIT_MODE", "live")
    browser = RowBrowser(tickets)
    browser.widget()
    assert browser._maker is not None
    sources: list[Slow] = []
    monkeypatch.setattr(
        "rftkit.widgets.rowbrowser.source_of",
        lambda path: sources.append(Slow(datasets.open(path))) or sources[0],
    )
    browser._maker._go.click()
    assert "0 rows so far" in browser._count.value
    sources[0].is_complete = True
    assert browser.wait(10)
    assert "1 to 15 of 20 rows" in browser._count.value
    browser.close()


def test_the_panel_splits_the_rows_into_a_folder_as_well(
    tickets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RFTKIT_MODE", "live")
    maker = RowMaker("tickets.csv", folder="support", target="all.jsonl")
    maker.widget()
    maker._go.click()
    assert maker.error == ""
    assert "split in support: 16 train, 2 valid, 2 test" in maker._done.value
    by_panel = {path.name: path.read_bytes() for path in Path("support").glob("*.jsonl")}
    assert sorted(by_panel) == ["test.jsonl", "train.jsonl", "valid.jsonl"]
    again = RowMaker("tickets.csv", folder="again", target="again.jsonl")
    for command in again.command.split(" && "):
        assert typed(*shlex.split(command)[1:]).exit_code == 0
    assert {name: Path("again", name).read_bytes() for name in by_panel} == by_panel
    taken = RowMaker("tickets.csv", folder="support", target="new.jsonl")
    with pytest.raises(InputError, match="exists"):
        taken.write()
    assert not Path("new.jsonl").exists(), "refused before anything is written"


def test_a_first_grader_never_compares_a_prompt_with_itself(tickets: Path) -> None:
    datasets.convert(tickets, "rows.jsonl", columns=Columns("{ticket}", ("category", "reason")))
    for source in (tickets, pd.read_csv(tickets), "rows.jsonl"):
        lab = GraderLab(source)
        assert "ticket" not in json.dumps(lab.spec)
        assert "{{item.category}}" in json.dumps(lab.spec)
        assert lab.response_format is not None
    assert lab.grade()["reward"].tolist() == [1.0] * 8
    lab.set(answers="pasted", pasted="Ticket: {ticket}")
    assert lab.grade()["reward"].tolist() == [0.0] * 8


def test_the_drafts_fit_the_rows_they_were_made_of(tickets: Path) -> None:
    datasets.convert(tickets, "rows.jsonl", columns=Columns("{ticket}", ("category", "reason")))
    items = [row.item for row in datasets.read("rows.jsonl")]
    spec = graders.validate(datasets.draft_grader(items))
    format_ = datasets.draft_format(spec, items)
    assert format_ is not None
    schema = format_["json_schema"]["schema"]
    assert schema["properties"]["category"]["enum"] == ["billing", "access", "other"]
    found = datasets.check("rows.jsonl", grader=spec, response_format=format_)
    assert found.ok
    assert "20 reference answers graded: each earns 1.000" in str(found)
