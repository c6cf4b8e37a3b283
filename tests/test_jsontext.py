"""JSON that is nested without end: every reader refuses it in words, none with a traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Served
from hypothesis import given
from hypothesis import strategies as st

import rftkit
from rftkit import datasets, evals
from rftkit.datasets import unpack
from rftkit.errors import InputError, PlatformError
from rftkit.graders import Sample
from rftkit.growing import json_values
from rftkit.jsondocuments import read_document, read_entries
from rftkit.jsontext import MOST_LEVELS, NestedTooDeeply, parse_json

DEPTHS = (MOST_LEVELS + 1, 400, 950, 100_000)
PACKAGE = Path(rftkit.__file__).parent
OWN = {
    "datasets/blanks.py", "graders/needs.py", "graders/scripted.py", "graders/similarity.py",
    "graders/watchdog.py", "graders/worker.py", "jsontext.py", "ladder/kept.py",
    "reports/sweep.py", "reports/worker.py", "server/api/batch_runner.py", "server/api/private.py",
    "server/engine/tinker/engine.py", "server/engine/tinker/remote.py",
    "server/engine/torch/lora.py", "server/evals/item_schema.py",
    "server/inference/worker_process.py", "server/store/answers.py", "server/store/batches.py",
    "server/store/database.py", "server/store/evals.py", "server/training/journal.py",
    "server/training/loop.py", "server/worker/exports/folders.py",
    "server/worker/exports/gguf_tokens.py", "server/worker/exports/source.py",
    "server/worker/worker.py", "strictjson.py",
}  # fmt: skip
"""Modules that read what this program wrote, or that run on their own without the package."""


def deep(levels: int, kind: str = "[") -> str:
    return "[" * levels + "]" * levels if kind == "[" else '{"a":' * levels + "1" + "}" * levels


def test_text_of_others_is_read_by_one_reader() -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if re.search(r"json\.loads?\(", path.read_text())
    }
    assert found == OWN


@pytest.mark.parametrize("kind", ["[", "{"])
def test_the_bound(kind: str) -> None:
    assert json.dumps(parse_json(deep(MOST_LEVELS, kind)), separators=(",", ":")) == deep(
        MOST_LEVELS, kind
    )
    assert len(parse_json("[" + "[],[]," * 500 + "[]]")) == 1001
    for levels in DEPTHS:
        for text in (deep(levels, kind), deep(levels, kind).encode()):
            with pytest.raises(NestedTooDeeply, match="nested more than 100 levels deep"):
                parse_json(text)


@pytest.mark.parametrize("levels", DEPTHS)
def test_files(levels: int, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f" [1,\n{deep(levels)}]")
    with pytest.raises(InputError, match=r"a\.json:1:2: the JSON is nested more than 100 levels"):
        read_document(path)
    path.write_text(f'1\n{deep(levels)}\n{{"a":2}}\n')
    assert list(json_values(path)) == [1, {"a": 2}]
    with pytest.raises(unpack._FlawedCell, match="`messages`: the JSON is nested more than 100"):
        unpack._cell("messages", deep(levels), ["messages"])
    rows = tmp_path / "rows.jsonl"
    row = {"messages": [{"role": "user", "content": "Say a."}]}
    rows.write_text(f"{json.dumps({**row, 'a': 1})[:-2]}{deep(levels)}}}\n{json.dumps(row)}\n")
    [found] = [each for each in datasets.check(rows).findings if each.code == "invalid_row"]
    assert found.details == (f"{rows}:1: the JSON is nested more than 100 levels deep",)


@pytest.mark.parametrize("levels", DEPTHS)
def test_answers(levels: int) -> None:
    assert Sample.from_text(deep(levels)).output_json is None


@pytest.mark.parametrize("levels", DEPTHS)
def test_requests(levels: int, served: Served) -> None:
    for path in ("/v1/chat/completions", "/v1/fine_tuning/alpha/graders/run", "/v1/evals"):
        answer = served.http.post(
            path, content=f'{{"a": {deep(levels)}}}', headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400, path
        assert "error" in answer.json()


@pytest.mark.parametrize("body", [deep(500), deep(100_000), "<html>", "[1]"])
def test_answers_of_a_service(body: str) -> None:
    import httpx
    import openai

    http = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, text=body)))
    client = openai.OpenAI(base_url="http://x/v1", api_key="k", http_client=http, max_retries=0)
    with pytest.raises(PlatformError, match="answered something that is not a JSON object"):
        evals.fetch(client, "ftjob-1")


def test_commands(tmp_path: Path) -> None:
    """What a user types: one line of words."""
    (tmp_path / "deep.json").write_text(deep(5000, "{"))
    (tmp_path / "deep.jsonl").write_text(deep(5000, "{") + "\n")
    (tmp_path / "deep.yaml").write_text("seed: " + "[" * 5000 + "]" * 5000)
    commands: list[list[Any]] = [
        ["check", "--dataset", "tiny_copy", "-g", "deep.json"],
        ["check", "deep.jsonl"],
        ["dataset", "convert", "deep.json", "out.jsonl"],
        ["report", "report_dataset", "--sweep", "deep.yaml"],
    ]
    program = "import sys; from rftkit.cli.app import main\nfor words in {}:\n" + (
        " sys.argv = ['rftkit', *words]\n try: main()\n except SystemExit: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program.format(commands)],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert (done.stdout + done.stderr).count("nested") == len(commands)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet="ab"), inner),
    max_leaves=8,
)


@given(st.lists(VALUES), st.sampled_from([None, 0, 2]))
def test_the_entries_of_an_array_come_one_by_one(values: list[Any], indent: int | None) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=False)
    found = list(read_entries(text, "a.json"))
    assert [value for _, value in found] == values
    lines = text.split("\n")
    for line, value in found:
        start = json.dumps(value, indent=indent, ensure_ascii=False).split("\n")[0][:8]
        assert start in lines[line - 1]
    assert [value for _, value in read_entries(f"{text}\n5 {text}", "a.json")] == [
        *values, 5, *values,
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["[1,]", "[1 2]", "[1", "[1,", "[,1]", "[", "[1]]", "[1]x", "{]"])
def test_arrays_that_are_broken_are_refused_with_their_place(text: str) -> None:
    with pytest.raises(InputError, match=r"^a\.json:2:\d+: not valid JSON"):
        list(read_entries(f"\n{text}", "a.json"))
