"""Model folders made by somebody who means harm: with code of their own, or without end."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from rftkit import client
from rftkit.server.engine import models
from rftkit.server.worker import chats

PACKAGE = Path(__file__).parents[3] / "rftkit"


@pytest.fixture
def tiny(home: Path) -> Path:
    return models.prepare(models.find_base("rftkit-tiny"), home)


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
            with pytest.raises(openai.APIStatusError, match=r"unheard-of|trust_remote_code"):
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

    engines = chats.Engines(home, watch)  # type: ignore[arg-type]
    with pytest.raises(InterruptedError):
        engines.get("endless", job="ftjob-1")
    [(what, seconds, job)] = said
    assert (what, job) == ("loading endless", "ftjob-1")
    assert chats.LOAD_SECONDS <= seconds < chats.LOAD_SECONDS + 1


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
