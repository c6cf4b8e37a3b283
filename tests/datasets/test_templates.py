"""Chat templates that refuse a prompt, and models without one, are findings with their rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from in_process import add_job, run
from typer.testing import CliRunner

from rftkit import datasets
from rftkit.cli import app as cli
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.worker.worker import Worker

REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}"
)
ROWS = [
    {"messages": [{"role": "user", "content": "copy: ab"}], "answer": "ab"},
    {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "copy: cd"}],
        "answer": "cd",
    },
]


def model(made_models: Path, folder: Path, template: str | None) -> Path:
    """A copy of `rftkit-tiny` with another chat template."""
    shutil.copytree(next(made_models.glob("rftkit-tiny-v*")), folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text())
    config.pop("chat_template", None)
    if template is not None:
        config["chat_template"] = template
    config_path.write_text(json.dumps(config))
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize(
    ("template", "lines", "words"),
    [(REFUSING, [2], "System role not supported"), (None, [1, 2], "no chat template")],
)
def test_check_names_the_rows(
    made_models: Path, tmp_path: Path, rows: Path, template: Any, lines: list[int], words: str
) -> None:
    folder = model(made_models, tmp_path / "own", template)
    found = datasets.check(rows, model=str(folder))
    [finding] = [each for each in found.findings if each.code == "prompt_refused"]
    assert not found.ok
    assert words in finding.message
    assert [place.line for place in finding.places] == lines
    frame = datasets.profile(rows, model=str(folder))
    assert frame["tokens"].isna().tolist() == [line in lines for line in (1, 2)]


def test_a_model_that_was_added_is_found_by_its_name(
    made_models: Path, tmp_path: Path, rows: Path, home: Path
) -> None:
    folder = model(made_models, tmp_path / "own", "{{ messages[-1].content }}")
    home.mkdir(exist_ok=True)
    (home / "bases.json").write_text(json.dumps({"mine": str(folder)}))
    for name in ("mine", "ft:mine:local::abc"):
        frame = datasets.profile(rows, model=name)
        assert "tokenizer and chat template" in frame.attrs["counted_by"]
    done = CliRunner().invoke(cli.app, ["dataset", "profile", str(rows), "--model", "mine"])
    assert "tokenizer and chat template of mine" in done.output


def test_a_folder_without_a_tokenizer_is_an_estimate(tmp_path: Path, rows: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert "an estimate" in datasets.profile(rows, model=str(folder)).attrs["counted_by"]


def test_a_job_is_refused_before_its_first_step(
    worker: Worker, made_models: Path, tmp_path: Path, home: Path
) -> None:
    folder = model(made_models, tmp_path / "own", REFUSING)
    (home / "bases.json").write_text(json.dumps({"mine": str(folder)}))
    job = run(worker, add_job(worker, rows=ROWS * 4, model="mine"))
    assert job.status == "failed"
    assert job.error is not None
    assert "rows.jsonl:2: " in job.error["message"]
    assert "put a system message into the user's message" in job.error["message"]
    said = [each.message for each in worker.store.events(job.id, limit=100)[0]]
    assert not any("Step" in each for each in said)


def test_rows_with_tools_are_counted_as_the_platform_reads_them(
    made_models: Path, tmp_path: Path
) -> None:
    [folder] = made_models.glob("rftkit-tiny-v*")
    function = {"name": "search", "parameters": {"type": "object", "properties": {}}}
    row = {**ROWS[0], "tools": [{"type": "function", "function": function}]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    engine = TorchEngine(folder, name="rftkit-tiny")
    [counted] = datasets.profile(path, model=str(folder))["tokens"]
    assert counted == len(engine.encode(row["messages"], row["tools"]))
