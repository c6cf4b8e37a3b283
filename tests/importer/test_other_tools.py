"""Evals of promptfoo and Inspect: rows, graders and runs, and the names of what does not fit."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import Served

from rftkit import compile_grader, evals
from rftkit.graders import Sample
from rftkit.importer import source_of, upload
from rftkit.importer.foreign import number_of
from rftkit.importer.promptfoo_graders import assertion_of, grader_of
from rftkit.importer.summaries import upload_summary
from rftkit.importer.units import LeftOut, Unit

CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("Capital of France?", "france", "It is France.", {}),
    ("2+2?", "4", "five", {}),
    ("Broken?", "x", "", {"failureReason": 2, "error": "HTTP 500", "response": {}}),
]


def results() -> dict[str, Any]:
    """As `promptfoo eval -o results.json` of version 0.123 writes it, without what is not read."""
    found = []
    for number, (question, answer, output, more) in enumerate(CASES):
        holds = answer in output.lower() and bool(output)
        asserts: list[dict[str, Any]] = [
            {"type": "icontains", "value": "{{answer}}"},
            {"type": "regex", "value": "^[A-Z]"},
            {"type": "equals", "value": output or "?"},
            {"type": "javascript", "value": "process.exit(1)"},
        ]
        passes = [holds, output[:1].isupper(), True, True]
        parts = [
            {"pass": passed, "score": float(passed), "reason": "", "assertion": each}
            for passed, each in zip(passes, asserts, strict=True)
        ]
        found.append({
            "gradingResult": {"pass": all(passes), "score": 0.5, "componentResults": parts},
            "prompt": {"raw": json.dumps([{"role": "user", "content": question}])},
            "promptIdx": 0, "testIdx": number, "provider": {"id": "openai:gpt-4.1-mini"},
            "response": {"output": output, "tokenUsage": {"total": 9, "completion": 2}},
            "vars": {"question": question, "answer": answer, "messages": "taken"},
            "failureReason": 0, **more,
        })  # fmt: skip
    return {
        "evalId": "eval-x",
        "results": {"version": 3, "timestamp": "2026-11-29T09:01:16.334Z", "results": found},
        "config": {"description": "capitals"},
    }


def units(path: Path) -> tuple[dict[str, list[Unit]], list[str]]:
    found: dict[str, list[Unit]] = {"file": [], "eval": [], "run": []}
    left: list[str] = []
    for each in source_of([path]).read():
        if isinstance(each, LeftOut):
            left.append(each.reason)
        else:
            found[each.kind].append(each)
    return found, left


def test_results_of_promptfoo_become_rows_graders_and_a_run(served: Served, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results()))
    done = upload(served.client, source_of([tmp_path / "results.json"]))
    assert done.is_complete
    assert done.new == {"file": 1, "eval": 1, "run": 1}
    told = upload_summary(done)
    assert "Without a counterpart here (2)" in told
    assert "assertion 'javascript' has no counterpart here" in told
    assert "variable 'messages' has a name that rows use" in told
    (found,) = served.client.evals.list()
    assert found.name == "capitals"
    names = [each.to_dict()["name"] for each in found.testing_criteria]
    assert names == ["icontains", "regex", "equals"]
    (run,) = served.client.evals.runs.list(found.id)
    assert run.result_counts.to_dict() == {"total": 3, "passed": 1, "failed": 1, "errored": 1}
    items = {i.datasource_item["question"]: i for i in
             served.client.evals.runs.output_items.list(run.id, eval_id=found.id)}  # fmt: skip
    assert items["Broken?"].results == []  # not graded, which is not zero
    assert items["2+2?"].datasource_item["expected_equals"] == "five"
    both = evals.fetch(served.client, f"{found.id}/{run.id}")
    assert len(both.frame) == 3
    (file,) = served.client.files.list()
    rows = [json.loads(line) for line in served.client.files.content(file.id).text.splitlines()]
    assert rows[0]["messages"] == [{"role": "user", "content": "Capital of France?"}]
    again = upload(served.client, source_of([tmp_path / "results.json"]))
    assert not again.new


def test_graders_decide_as_the_assertions_did(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results()))
    found, _ = units(tmp_path / "results.json")
    (wire,) = [unit.wire for unit in found["eval"]]
    items = [json.loads(part) for part in found["run"][0].parts()]
    for grader in wire["testing_criteria"]:
        grade = compile_grader({k: v for k, v in grader.items() if k != "pass_threshold"})
        for item in items[:2]:
            text = item["sample"]["output"][0]["content"]
            (given,) = [r["score"] for r in item["results"] if r["name"] == grader["name"]]
            assert grade.grade(Sample(text), item["datasource_item"]).reward == given


def test_a_config_gives_rows_and_graders_and_nothing_of_it_is_run(tmp_path: Path) -> None:
    path = tmp_path / "promptfooconfig.yaml"
    path.write_text(
        "description: mine\nprompts: ['Say {{word}}', 'file:///etc/passwd']\nproviders: [echo]\n"
        "defaultTest: {assert: [{type: python, value: 'file://evil.py'}]}\n"
        "tests:\n- vars: {word: hi, day: 2026-01-01}\n- file://tests.py\n"
    )
    found, left = units(path)
    (file,) = found["file"]
    assert file.content is not None
    assert json.loads(file.content().read()) == {
        "messages": [{"role": "user", "content": "Say hi"}], "word": "hi", "day": "2026-01-01",
    }  # fmt: skip
    text = "\n".join(left)
    assert "tests in file://tests.py" in text
    assert "assertion 'python' has no counterpart" in text
    assert "file:///etc/passwd" in text
    assert not found["run"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n"
            for old, new in zip("abcdefg", "bcdefgh", strict=True)), "more values"),
        ("!!python/object/apply:os.system ['touch /tmp/x']\n", "could not determine"),
        ("a: 1\n", "no config of promptfoo"),
        ("[" * 5000, "cannot be read"),
    ],
)  # fmt: skip
def test_hostile_configs_are_named(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "promptfooconfig.yaml"
    path.write_text(text)
    found, left = units(path)
    assert not any(found.values())
    assert why in left[0]


@pytest.mark.parametrize("value", [[], {"results": []}, {"results": {"results": [1, {}, {
    "vars": [], "prompt": 3, "gradingResult": {"componentResults": [None, {"score": "x"}]},
    "testIdx": "a", "provider": {}, "response": {"output": {"a": 1}}}]}}])  # fmt: skip
def test_malformed_results_are_no_traceback(value: Any, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"evalId": "x", **(value or {"results": 1})}))
    units(tmp_path / "results.json")


def test_scores_that_are_no_numbers_are_none() -> None:
    values: list[Any] = [float("nan"), float("inf"), "1", None, [], 10**400]
    assert [number_of(value) for value in values] == [None] * 6
    assert number_of(True) == 1.0


def test_assertions_and_graders_are_each_other(tmp_path: Path) -> None:
    for kind in ("equals", "not-equals", "contains", "icontains", "rouge-n", "bleu", "similar"):
        grader = grader_of("g", {"type": kind, "threshold": 0.6}, "{{ x }}!", None)
        assert isinstance(grader, dict)
        back = assertion_of(grader)
        assert isinstance(back, dict)
        assert back["type"] == kind
        assert back["value"] == "{{ item.x }}!"
        assert back.get("threshold", 0.6) == 0.6
    assert isinstance(grader_of("g", {"type": "regex"}, "(", None), str)
    assert isinstance(grader_of("g", {"type": "equals"}, "{{ x | upper }}", None), str)
    quoted = grader_of("g", {"type": "starts-with"}, "'''\n\"; import os #", None)
    assert isinstance(quoted, dict)
    grade = compile_grader({k: v for k, v in quoted.items() if k != "pass_threshold"})
    assert grade.grade(Sample("'''\n\"; import os # yes"), {}).reward == 1.0


# -- Inspect ---------------------------------------------------------------------------------------


def sample(number: int, epoch: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "id": number, "epoch": epoch, "input": "attachment://a", "target": "Paris",
        "messages": [{"role": "system", "content": "Answer."}, {"role": "user", "content": "?"}],
        "output": {"model": "m", "choices": [{"message": {"role": "assistant", "content": [
            {"type": "text", "text": "It is Paris."}]}, "stop_reason": "max_tokens"}],
            "usage": {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}},
        "scores": {"includes": {"value": "C"}, "odd": {"value": float("nan")},
                   "parts": {"value": {"a": 0.5, "b": "N"}}, "words": {"value": "fine"}},
        "metadata": {"level": number, "target": "taken"}, "attachments": {"a": "Capital?"},
        "events": ["long"], "error": None, **more,
    }  # fmt: skip


def log() -> dict[str, Any]:
    """As Inspect 0.3.285 writes it, without what is not read."""
    scorers = [{"name": "includes", "options": {}}, {"name": "odd", "options": {}}]
    described = {"task": "capitals", "model": "openai/m", "created": "2026-11-29T09:00:44+00:00",
                 "scorers": scorers}  # fmt: skip
    failed = sample(2, error={"message": "it broke", "traceback": "…"}, output={}, scores={})
    return {"version": 2, "status": "success", "eval": described,
            "samples": [sample(1), failed, sample(1, 2)]}  # fmt: skip


def packed(path: Path, documents: dict[str, Any], *, zstd: bool) -> Path:
    """A `.eval` file; Python 3.11 packs no zstd into a zip, so the fields are set by hand."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in documents.items():
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            if not zstd:
                archive.writestr(name, content)
                continue
            pa, info = pytest.importorskip("pyarrow"), zipfile.ZipInfo(name)
            archive.writestr(info, pa.compress(content, codec="zstd", asbytes=True))
            info.compress_type, info.file_size = 93, len(content)
    return path


def documents() -> dict[str, Any]:
    whole = log()
    samples = {
        f"samples/{each['id']}_epoch_{each['epoch']}.json": each for each in whole.pop("samples")
    }
    return {"_journal/start.json": {}, **samples, "header.json": whole}


@pytest.mark.parametrize("form", ["json", "eval", "zstd"])
def test_logs_of_inspect_become_rows_a_grader_and_a_run(
    form: str, served: Served, tmp_path: Path
) -> None:
    if form == "json":
        path = tmp_path / "log.json"
        path.write_text(json.dumps(log()))
    else:
        path = packed(tmp_path / "log.eval", documents(), zstd=form == "zstd")
    done = upload(served.client, source_of([path]))
    assert done.is_complete
    (found,) = served.client.evals.list()
    (grader,) = [each.to_dict() for each in found.testing_criteria]
    assert (grader["operation"], grader["reference"]) == ("ilike", "{{item.target}}")
    (run,) = served.client.evals.runs.list(found.id)
    assert (run.model, run.result_counts.total, run.result_counts.errored) == ("openai/m", 3, 1)
    items = list(served.client.evals.runs.output_items.list(run.id, eval_id=found.id))
    scores = {each.name: each.score for each in items[0].results}
    assert scores == {"includes": 1.0, "parts/a": 0.5, "parts/b": 0.0}
    assert items[0].sample.finish_reason == "length"
    assert items[0].datasource_item["messages"] == [
        {"role": "system", "content": "Answer."}, {"role": "user", "content": "Capital?"},
    ]  # fmt: skip
    told = upload_summary(done)
    assert "scorer 'odd' has no counterpart here" in told
    assert "score 'words' has values that are no numbers" in told


def test_hostile_logs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rftkit.importer import inspect_logs

    (tmp_path / "a.eval").write_bytes(b"PK\x03\x04nothing")
    _, left = units(tmp_path / "a.eval")
    assert "no log of Inspect" in left[0]
    started = {name: value for name, value in documents().items() if name != "header.json"}
    _, left = units(packed(tmp_path / "b.eval", started, zstd=False))
    assert "the eval did not end" in left[0]
    monkeypatch.setattr(inspect_logs, "MAX_DOCUMENT", 1000)
    bomb = {**documents(), "samples/x.json": b" " * 5000}
    for zstd in (False, True):
        _, left = units(packed(tmp_path / f"c{zstd}.eval", bomb, zstd=zstd))
        assert "more than 0 MB" in left[0]
    whole = packed(tmp_path / "e.eval", documents(), zstd=True).read_bytes()
    (tmp_path / "d.eval").write_bytes(whole.replace(b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfc"))
    _, left = units(tmp_path / "d.eval")
    assert len(left) == 1
