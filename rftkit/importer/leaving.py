"""A dump's evals as promptfoo configs, one folder for each: `rftkit import --to promptfoo`.

`promptfooconfig.yaml` asks the models of the saved runs the saved prompts again, and
`saved-answers.yaml` grades the saved answers, without a model. Items are data: nothing in them is a
template, a file or a program for promptfoo. A grader that has no assertion is named in the folder's
README.md; a python grader is not copied, because promptfoo would run it unconfined. Not here:
reading promptfoo.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rftkit.errors import InputError
from rftkit.importer.dump import safe_name
from rftkit.importer.promptfoo_graders import assertion_of
from rftkit.importer.units import DumpSource, LeftOut, Unit
from rftkit.jsontext import digest_of, parse_json
from rftkit.outputitems import answer_text, grader_name
from rftkit.wording import counted

__all__ = ["Written", "write_promptfoo"]

Json = dict[str, Any]

SCHEMA = "# yaml-language-server: $schema=https://promptfoo.dev/config-schema.json\n"
PROMPTS = {"promptfooconfig": "{{ sample.prompt | dump }}", "saved-answers": "{{ sample.answer }}"}
"""A prompt for each config. promptfoo takes rows and samples as objects, without changing their
texts. It would render a variable that is a text, or load it if it names a file."""


@dataclass(slots=True)
class Written:
    """What was written for one eval."""

    eval_id: str
    folder: str
    num_tests: int = 0
    num_answers: int = 0
    assertions: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    """Sentences about what has no counterpart in promptfoo."""


def write_promptfoo(dump: Path, out: Path) -> list[Written]:
    """Write every eval of a dump; `out` must be new or empty.

    Raises:
        InputError: there is no dump, or `out` holds something.
    """
    source = DumpSource(dump)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder; name a new one")
    evals: dict[str, Json] = {}
    runs: dict[str, list[Unit]] = {}
    for unit in source.read():
        if isinstance(unit, LeftOut):
            continue
        if unit.kind == "eval":
            evals[unit.id] = unit.wire
        elif unit.kind == "run":
            runs.setdefault(str(unit.wire.get("eval_id")), []).append(unit)
    return [_write(wire, runs.get(eval_id, []), out) for eval_id, wire in evals.items()]


def _write(wire: Json, runs: list[Unit], out: Path) -> Written:
    name = re.sub(r"[^A-Za-z0-9]+", "-", str(wire.get("name") or "eval")).strip("-")[:40]
    folder = out / f"{name or 'eval'}-{safe_name(str(wire['id']))}"
    done = Written(str(wire["id"]), str(folder))
    asserts = []
    for grader in wire.get("testing_criteria") or []:
        made = assertion_of({**grader, "name": grader_name(grader.get("name"))})
        if isinstance(made, str):
            done.unfit.append(made)
        else:
            asserts.append(made)
    done.assertions = [str(each["metric"]) for each in asserts]
    tests: dict[str, Json] = {}
    answers: list[Json] = []
    for run in runs:
        _read_run(run, tests, answers)
    done.num_tests, done.num_answers = len(tests), len(answers)
    if runs and not tests:
        done.unfit.append("its runs hold no prompts: there is nothing to ask a model again")
    folder.mkdir(parents=True)
    models = {str(run.wire.get("model")) for run in runs if run.wire.get("model")}
    described = str(wire.get("name") or wire["id"])
    providers = sorted(_literal(f"openai:chat:{model}") for model in models) or ["echo"]
    configs = {"promptfooconfig": list(tests.values()), "saved-answers": answers}
    for file, cases in configs.items():
        if cases:
            asked = providers if file == "promptfooconfig" else ["echo"]
            _save(folder, file, described, asked, asserts, cases)
    (folder / "README.md").write_text(_readme(done, described), encoding="utf-8")
    return done


def _read_run(run: Unit, tests: dict[str, Json], answers: list[Json]) -> None:
    """Add the prompts and the answers of a run; prompts that several runs have count once."""
    for item in sorted(map(parse_json, run.parts()), key=_row_number):
        row = item.get("datasource_item")
        sample = item.get("sample")
        sample = sample if isinstance(sample, dict) else {}
        row = row if isinstance(row, dict) else {}
        if messages := _messages(sample.get("input"), row):
            test = {"vars": {"item": row, "sample": {"prompt": messages}}}
            tests.setdefault(digest_of(test), test)
        if (answer := answer_text(sample.get("output"))) is not None:
            about = {"run": run.id, "model": str(run.wire.get("model"))}
            answers.append({"vars": {"item": row, "sample": {"answer": answer, **about}}})


def _row_number(item: Json) -> float:
    """Services list items as they ended, in another order each time."""
    number = item.get("datasource_item_id")
    return number if isinstance(number, int) else math.inf


def _messages(given: Any, row: Any) -> list[Json]:
    """The prompt that was sent, or the one that the row holds."""
    held = row.get("messages") if isinstance(row, dict) else None
    for each in (given, held):
        if isinstance(each, list) and each and all(isinstance(m, dict) for m in each):
            return [{"role": m.get("role"), "content": m.get("content")} for m in each]
    return []


def _literal(text: str) -> str:
    """A text of a config in which nothing is a template."""
    return re.sub(r"\{(?=[{%#])", '{{ "{" }}', text)


def _save(
    folder: Path, file: str, description: str, providers: list[str], asserts: list[Json],
    cases: Iterable[Json],
) -> None:  # fmt: skip
    import yaml

    config = {
        "description": _literal(description),
        "prompts": [PROMPTS[file]],
        "providers": providers,
        # A list in a row is one value, not one test for each of its parts.
        "defaultTest": {"options": {"disableVarExpansion": True}, "assert": asserts},
        "tests": f"file://{file}-tests.json",
    }
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)
    (folder / f"{file}.yaml").write_text(SCHEMA + text, encoding="utf-8")
    tests = json.dumps(list(cases), ensure_ascii=True, indent=1)
    (folder / f"{file}-tests.json").write_text(tests, encoding="utf-8")


def _readme(done: Written, name: str) -> str:
    lines = [f"# {' '.join(name.split())}", "", f"Eval {done.eval_id}, as promptfoo configs.", ""]
    if done.num_tests:
        tests = counted(done.num_tests, "test")
        command = "promptfoo eval -c promptfooconfig.yaml"
        lines.append(f"- `{command}` asks the models again: {tests}. Change `providers` freely.")
    if done.num_answers:
        answers = counted(done.num_answers, "answer")
        lines.append(f"- `promptfoo eval -c saved-answers.yaml` grades the saved ones: {answers}.")
    if done.unfit:
        lines += ["", "Without a counterpart in promptfoo:", "", *(f"- {e}" for e in done.unfit)]
    return "\n".join(lines) + "\n"
