"""Model folders made by somebody who means harm: with code of their own, or without end."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import in_process
import openai
import pytest

from rftkit import client
from rftkit.cli.app import app
from rftkit.server.engine import models
from rftkit.server.worker.engines import LOAD_SECONDS, Engines
from rftkit.server.worker.worker import Worker

PACKAGE = Path(__file__).parents[3] / "rftkit"


def hostile(tiny: Path, folder: Path) -> Path:
    """A copy of the tiny model that asks for code of its own, wherever it can."""
    shutil.copytree(tiny, folder)
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w').write('x')\n")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = folder / name
        values = json.loads(path.read_text()) if path.exists() else {}
        kinds = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
        values["auto_map"] = dict.fromkeys(kinds, "evil.Evil")
        values["auto_map"]["AutoTokenizer"] = ["evil.Evil", "evil.Evil"]
        if name == "config.json":
            values["model_type"] = "unheard-of"
        path.write_text(json.dumps(values))
    return folder


def test_every_load_refuses_code_of_the_folder() -> None:
    found = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of = ast.unparse(node.func.value)
            if node.func.attr in ("from_pretrained", "from_config") and of.startswith("Auto"):
                found += 1
                given = {word.arg: word.value for word in node.keywords}.get("trust_remote_code")
                assert isinstance(given, ast.Constant), f"{path}:{node.lineno}"
                assert given.value is False, f"{path}:{node.lineno}"
    assert found >= 8


def test_a_folder_with_code_of_its_own_is_refused_at_once(tiny: Path, tmp_path: Path) -> None:
    folder = hostile(tiny, tmp_path / "hostile")
    program = "from rftkit.cli.app import main; main()"
    add = [sys.executable, "-c", program, "models", "add", str(folder)]
    subprocess.run(add, check=True, capture_output=True)
    with client.connect(timeout=120, max_retries=0) as local:
        try:
            with pytest.raises(openai.APIStatusError, match="needs code of its own"):
                local.chat.completions.create(
                    model="hostile", messages=[{"role": "user", "content": "hi"}]
                )
            assert not (folder / "ran").exists()
        finally:
            client.stop_server()


def test_a_load_that_never_ends_is_announced_with_its_limit(
    tiny: Path, tmp_path: Path, home: Path
) -> None:
    folder = tmp_path / "endless"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    os.mkfifo(folder / "tokenizer.json")
    (home / "bases.json").write_text(json.dumps({"endless": str(folder)}))
    said: list[tuple[str, float, str | None]] = []

    def watch(what: str, seconds: float, job: str | None) -> object:
        said.append((what, seconds, job))
        raise InterruptedError

    engines = Engines(home, watch)  # type: ignore[arg-type]
    with pytest.raises(InterruptedError):
        engines.get("endless", job="ftjob-1")
    [(what, seconds, job)] = said
    assert (what, job) == ("loading endless", "ftjob-1")
    assert LOAD_SECONDS <= seconds < LOAD_SECONDS + 1


def test_a_model_card_of_any_size_is_read_quickly(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    home.mkdir()
    (folder / "config.json").write_text("{}")
    (home / "bases.json").write_text(json.dumps({"added": str(folder)}))
    for card, licence in {
        "---\nlicense: mit\ntags: [a]\n---\n# Card\n": "mit",
        "---\n" + "license: mit\n" * 2_000_000: None,
        "license: mit\n": None,
        "---\n---\nlicense: mit\n---\n": None,
    }.items():
        (folder / "README.md").write_text(card)
        assert models.find_base("added", home).licence == licence


def add(folder: Path, name: str) -> None:
    with pytest.raises(SystemExit):
        app(["models", "add", str(folder), "--name", name])


def test_a_folder_that_has_changed_since_it_was_added_is_not_loaded(
    tiny: Path, tmp_path: Path, home: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tiny, folder)
    add(folder, "mine")
    Engines(home).get("mine")
    config = folder / "config.json"
    before = config.read_text()
    config.write_text(before + " ")
    with pytest.raises(models.ChangedModelError, match=r"config\.json is another\. Restore them;"):
        Engines(home).get("mine")
    config.write_text(before)
    Engines(home).get("mine")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(models.ChangedModelError, match=r"models add .*mine --name mine"):
        Engines(home).get("mine")
    add(folder, "mine")
    Engines(home).get("mine")


def test_a_folder_that_an_older_rftkit_added_needs_no_fingerprint(
    tiny: Path, tmp_path: Path, home: Path
) -> None:
    shutil.copytree(tiny, tmp_path / "mine")
    (home / "bases.json").write_text(json.dumps({"mine": str(tmp_path / "mine")}))
    (home / models.SUMS).write_text('{"other": {}}')
    Engines(home).get("mine")


def test_a_job_on_a_changed_folder_pauses_and_continues_when_it_is_restored(
    tiny: Path, tmp_path: Path, home: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tiny, folder)
    add(folder, "mine")
    worker = Worker(home, lambda message: None)
    job = in_process.add_job(worker, model="mine")
    before = (folder / "config.json").read_text()
    (folder / "config.json").write_text(before + " ")
    job = in_process.run(worker, job)
    assert job.status == "paused", job.error
    assert "config.json is another" in in_process.messages(worker, job)[-1]
    (folder / "config.json").write_text(before)
    worker.store.update_job(job.id, status="queued")
    assert in_process.run(worker, job).status == "succeeded"
