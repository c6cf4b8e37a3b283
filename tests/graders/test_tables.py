"""Tables of grades and the audit of a grader."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from rftkit import graders
from rftkit.errors import InputError, RowError
from rftkit.graders import Sample, confine
from rftkit.graders.cheats import CHEATS, DANGERS, make_answers
from rftkit.graders.references import reference_answer

LABEL = {
    "type": "string_check",
    "operation": "eq",
    "input": "{{sample.output_json.label}}",
    "reference": "{{item.label}}",
}
WHY = {
    "type": "text_similarity",
    "evaluation_metric": "rouge_l",
    "input": "{{sample.output_json.why}}",
    "reference": "{{item.why}}",
}
SPEC = {
    "type": "multi",
    "graders": {"label": LABEL, "why": WHY},
    "calculate_output": "0.5 * label + 0.5 * why",
}
ROWS = [
    {
        "messages": [{"role": "user", "content": f"Is the vault number {n} locked at night?"}],
        "label": ["yes", "no"][n % 2],
        "why": f"The guard of building {n} closes the vault at eight",
    }
    for n in range(8)
]


def answers() -> list[str]:
    out = [json.dumps({"label": row["label"], "why": row["why"]}) for row in ROWS]
    return [*out[:-2], "no JSON", json.dumps({"label": "yes", "why": "other"})]


class TestGradeMany:
    def test_a_packed_file_that_is_broken_off_is_named(self, tmp_path: Path) -> None:
        lines = "".join(json.dumps({"item": row, "sample": "{}"}) + "\n" for row in ROWS)
        path = tmp_path / "answers.jsonl.gz"
        path.write_bytes(gzip.compress(lines.encode())[:-12])
        with pytest.raises(InputError, match=r"answers\.jsonl\.gz: cannot be read: "):
            graders.grade_many(SPEC, path)

    def test_columns(self) -> None:
        pairs = [(Sample.from_text(a), row) for a, row in zip(answers(), ROWS, strict=True)]
        pairs[0] = (pairs[0][0], {})
        table = graders.grade_many(SPEC, pairs)
        assert list(table.columns) == [
            "reward", "outcome", "reward/label", "reward/why", "error/invalid_variable_error",
            "error/sample_parse_error", "details", "seconds", "tokens",
        ]  # fmt: skip
        assert table.outcome.tolist() == ["failed"] + ["graded"] * 5 + ["unscorable", "graded"]
        assert table.reward.isna().tolist() == [True] + [False] * 7
        assert table.reward[1] == 1.0
        assert "`item.label` is missing" in table.details[0]

    def test_sources_agree(self, tmp_path: Path) -> None:
        flat = pd.DataFrame(ROWS).assign(output_text=answers())
        flat.index = pd.Index(range(100, 108))
        lines = [{"item": row, "sample": a} for a, row in zip(answers(), ROWS, strict=True)]
        lines[0]["sample"] = {"output_text": answers()[0]}
        path = tmp_path / "samples.jsonl"
        path.write_text("\n\n".join(map(json.dumps, lines)))
        tables = [graders.grade_many(SPEC, source) for source in (flat, path, str(path), lines)]
        assert tables[0].index.tolist() == list(flat.index)
        for table in tables[1:]:
            left = tables[0].drop(columns="seconds").reset_index(drop=True)
            pd.testing.assert_frame_equal(left, table.drop(columns="seconds"))

    def test_missing_cells_are_missing(self) -> None:
        flat = pd.DataFrame([{"text": '{"label": "x"}', "label": "x"}, {"text": "{}"}])
        table = graders.grade_many(LABEL, flat, answer="text")
        assert table.outcome.tolist() == ["graded", "unscorable"]
        table = graders.grade_many(LABEL | {"input": "x"}, flat, answer="text")
        assert "`item.label` is missing: `item` has the keys: none" in table.details[1]

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("{", "not valid JSON"),
            ("[]", "expected a JSON object, found an empty list"),
            ('{"a": 1}', "no answer to grade"),
            ('{"item": {}, "sample": 3}', "the answer must be text, .*found a number"),
        ],
    )
    def test_bad_rows_are_named(self, tmp_path: Path, line: str, words: str) -> None:
        path = tmp_path / "samples.jsonl"
        path.write_text('{"output_text": "x"}\n' + line)
        with pytest.raises(RowError, match=rf"samples\.jsonl:2: .*{words}"):
            graders.grade_many(LABEL, path)
        with pytest.raises(InputError, match="there is no file"):
            graders.grade_many(LABEL, tmp_path / "none")

    def test_resumes_and_grades_failures_again(self, tmp_path: Path) -> None:
        journal = tmp_path / "journal.jsonl"
        calls: list[str] = []

        def complete(*, messages: list, **_: object) -> graders.Completion:
            calls.append(messages[0]["content"])
            if messages[0]["content"] == "b" and len(calls) < 4:
                return graders.Completion("broken")
            return graders.Completion('{"result": 0.5}')

        spec = {"type": "score_model", "model": "m",
                "input": [{"role": "user", "content": "{{sample.output_text}}"}]}  # fmt: skip
        pairs = [(Sample(text), {}) for text in "abc"]
        first = graders.grade_many(spec, pairs, journal=journal, complete=complete, concurrency=1)
        assert first.outcome.tolist() == ["graded", "failed", "graded"]
        with journal.open("a") as file:
            file.write('{"key": "cut o')
        again = graders.grade_many(
            spec, [*pairs, (Sample("d"), {})], journal=journal, complete=complete, concurrency=1
        )
        assert again.outcome.tolist() == ["graded"] * 4
        assert calls == ["a", "b", "c", "b", "d"]
        graders.grade_many(spec | {"model": "other"}, pairs, journal=journal, complete=complete)
        assert len(calls) == 8

    def test_progress(self, capsys: pytest.CaptureFixture[str]) -> None:
        graders.grade_many(LABEL, [(Sample("{}"), ROWS[0])] * 5, progress=True)
        assert "5/5" in capsys.readouterr().err

    def test_nothing_to_grade(self) -> None:
        assert graders.grade_many(LABEL, []).empty


class TestAudit:
    def test_a_good_grader_holds(self) -> None:
        result = graders.audit(SPEC, ROWS)
        assert (result.num_rows, result.honest, result.best, result.short) == (8, 1.0, 1.0, ())
        assert sum(result.carriers.values()) == pytest.approx(1.0)
        earned = {cheat.name: cheat.mean for cheat in result.cheats}
        assert set(earned) == set(CHEATS)
        assert earned["empty"] == earned["off_format"] == 0.0
        assert max(earned.values()) < 1.0

    def test_a_bad_grader_is_found_out(self) -> None:
        source = "def grade(sample, item):\n    return min(1.0, len(sample['output_text']) / 60)\n"
        result = graders.audit({"type": "python", "source": source}, [{"answer": "a" * 60}] * 3)
        findings = "\n".join(result.findings())
        for cheat in ("padding", "judge_injection", "huge_numbers"):
            assert f"{cheat} earns 1.000 against 1.000 for the reference, and no less in 3" in (
                findings
            )
        assert "empty earns" not in findings

    @pytest.mark.skipif(confine.missing() is not None, reason="cannot isolate here")
    def test_an_answer_that_is_executed_can_change_the_grader(self) -> None:
        source = (
            "def grade(sample, item):\n"
            "    found = eval(sample['output_text'], {})\n"
            "    return float(found == item['answer'])\n"
        )
        spec = {"type": "python", "source": source}
        rows = [{"answer": n} for n in range(6)]
        options = {"references": [f"{n} + 0" for n in range(6)], "workers": 1}
        shared = graders.audit(spec | {"isolation": "shared"}, rows, **options)
        assert any(found.startswith("code earns") for found in shared.findings())
        earned = {cheat.name: cheat.mean for cheat in graders.audit(spec, rows, **options).cheats}
        assert earned["code"] == 0.0

    def test_rows_that_disagree_are_named(self) -> None:
        spec = LABEL | {"reference": "yes"}
        rows = [{"answer": '{"label": "yes"}'}, {"answer": '{"label": "no"}'}, {"answer": "x"}, {}]
        result = graders.audit(spec | {"input": "{{ sample.output_json.label }}!"}, rows)
        assert (result.short, result.honest) == ((), 0.0)
        spec["reference"] = "yes{{item.none}}"
        result = graders.audit(spec, [*rows, {"answer": '{"label": ""}', "none": ""}])
        assert set(result.ungradable) == {0, 1, 2, 3}
        assert "`item.none` is missing" in result.ungradable[0]
        assert "neither the grader nor the row" in result.ungradable[3]
        result = graders.audit(SPEC, ROWS[:3], references=['{"label": "yes", "why": ""}'] * 3)
        assert result.short == (1,)
        assert "1 of 3 reference answers earn less than the best" in str(result)

    def test_references_must_match(self) -> None:
        with pytest.raises(InputError, match="1 references for 8 rows"):
            graders.audit(SPEC, ROWS, references=["x"])

    def test_nothing_to_try(self) -> None:
        assert "nothing was tried" in graders.audit(SPEC, []).findings()[0]

    def test_table_and_words(self) -> None:
        result = graders.audit(SPEC, ROWS)
        assert result.to_frame().answer.tolist() == ["reference", *CHEATS]
        golden = Path(__file__).parents[1] / "golden" / "graders_audit.txt"
        assert str(result) + "\n" == golden.read_text(encoding="utf-8")

    def test_cheats(self) -> None:
        assert set(CHEATS) == set(DANGERS)
        item = {"messages": [{"role": "user", "content": "Q?"}]}
        honest = '{"label": "yes", "why": "It holds 12 of the keys", "n": 3}'
        made = make_answers(honest, item, [honest, "other"])
        assert json.loads(made["form_only"]) == {"label": "", "why": "", "n": 0}
        assert json.loads(made["changed_fact"])["why"] == "It holds 13 of the keys"
        assert json.loads(made["repetition"])["label"] == "yes"
        assert json.loads(made["huge_numbers"])["n"] == 10**300
        assert made["other_answer"] == "other"
        assert made["off_format"].startswith("Here is my answer.\nlabel: yes")
        text = make_answers("Paris", {}, [])
        assert text["changed_fact"] == "It is not true that Paris"
        assert json.loads(text["off_format"]) == {"final": "Paris"}

    def test_references_are_worked_out(self) -> None:
        spec = graders.validate(SPEC)
        assert json.loads(reference_answer(ROWS[1], grader=spec) or "") == {
            "label": "no",
            "why": ROWS[1]["why"],
        }
        text = graders.validate(
            LABEL | {"input": "{{item.a}}", "reference": "{{sample.output_text}}"}
        )
        assert reference_answer({"a": "x"}, grader=text) == "x"
        judge = {"type": "python", "source": "def grade(s, i): return 1"}
        assert reference_answer({"reference_answer": {"a": 1}}, grader=judge) == '{"a": 1}'
        schema = {"type": "json_schema", "json_schema": {"schema": {"properties": {"k": {}}}}}
        assert reference_answer({"k": 1, "l": 2}, schema, grader=judge) == '{"k": 1}'
        assert reference_answer({"l": 2}, schema, grader=judge) is None
