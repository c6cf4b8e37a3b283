"""GraderLab: form and JSON in step, grades with every step shown, what an edit changes."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rftkit import datasets, evals, jobs
from rftkit.errors import GraderSpecError, InputError
from rftkit.evals import Answer
from rftkit.graders import Sample
from rftkit.graders.tracing import render_all
from rftkit.widgets import GraderLab, JobLauncher
from rftkit.widgets.graderform import template_fields

ROWS = [
    {"messages": [{"role": "user", "content": f"Say {n}"}], "answer": f"<b>{n}</b>", "topic": "n"}
    for n in range(20)
]
EXACT = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}
BROKEN = "def grade(sample, item):\n    wanted = item['topic']\n    return 1 / (len(wanted) - 1)\n"


def python(source: str) -> dict[str, Any]:
    return {"type": "python", "name": "mine", "source": source}


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFTKIT_MODE", "live")


def shown(lab: GraderLab) -> GraderLab:
    lab.widget()
    assert lab.wait(60)
    return lab


def test_a_first_grader_is_guessed_and_run() -> None:
    lab = GraderLab(ROWS)
    assert lab.spec["reference"] == "{{item.answer}}"
    assert lab.grade()["reward"].tolist() == [1.0] * 8
    assert lab.row == 0
    assert "reward 1.000" in str(lab)
    assert "&lt;b&gt;0&lt;/b&gt;" in lab.to_html()
    assert "<b>0</b>" not in lab.to_html()
    assert "onclick" not in lab._grades_html(live=False)


def test_pasted_answers_and_chosen_rows() -> None:
    lab = GraderLab(ROWS, grader=EXACT, rows=[3, 4], answers="pasted", pasted="<b>4</b>")
    assert lab.grade()["reward"].to_dict() == {3: 0.0, 4: 1.0}


def test_an_edit_shows_whose_rewards_changed() -> None:
    lab = GraderLab(ROWS, grader=EXACT | {"reference": "<b>1</b>"}, rows=[0, 1])
    lab.set(answers="pasted", pasted="<b>0</b>")
    lab.grade()
    lab.set(answers="pasted", pasted="<b>1</b>")
    assert lab.grade()["before"].isna().all()  # other answers are not compared
    lab.spec = EXACT
    assert lab.grade()[["before", "reward"]].to_numpy().tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert "1 down" in lab.to_html()
    lab.grade()
    assert lab.data()["before"].tolist() == [1.0, 1.0]  # grading again is no edit


def test_fresh_answers_are_asked_once_for_each_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def ask(client: Any, model: str, rows: Any, *, on_answer: Any, **_: Any) -> list[Answer]:
        asked.append((model, len(rows)))
        answers = [Answer(model, Sample.from_text("<b>0</b>")) for _ in rows]
        for index, answer in enumerate(answers):
            on_answer(index, answer)
        return answers

    monkeypatch.setattr(evals, "ask", ask)
    client: Any = object()
    lab = GraderLab(ROWS, grader=EXACT, client=client, rows=[0, 1], answers="sampled", model="m")
    assert lab.grade()["reward"].tolist() == [1.0, 0.0]
    lab.spec = EXACT | {"operation": "ne"}
    assert lab.grade()["reward"].tolist() == [0.0, 1.0]
    assert asked == [("m", 2)]
    lab.ask_again()
    lab.grade()
    assert asked == [("m", 2), ("m", 2)]
    lab.model = ""
    with pytest.raises(InputError, match="choose a model"):
        lab.grade()


class Models:
    """A client whose chats wait for `goes_on`, but for the first row's."""

    def __init__(self) -> None:
        self.goes_on, self.asked = threading.Event(), []  # type: ignore[var-annotated]
        self.chat = self.completions = self

    def create(self, *, messages: Any, **options: Any) -> Any:
        self.asked.append(options)
        if messages != ROWS[0]["messages"]:
            self.goes_on.wait(60)
        message = SimpleNamespace(content="<b>0</b>", tool_calls=None)
        choice = SimpleNamespace(message=message, finish_reason="stop")
        return SimpleNamespace(choices=[choice], usage=None)


def test_sampling_shows_its_progress_and_stops_with_what_it_has(live: None) -> None:
    client: Any = Models()
    given = {"rows": [0, 1, 2], "answers": "sampled", "model": "m", "max_completion_tokens": 17}
    lab = GraderLab(ROWS, grader=EXACT, client=client, **given)
    lab.widget()
    assert lab._stop.layout.display == "none"
    lab._go.click()
    until(lambda: "m answered 1 of 3 rows" in lab._status.value)
    until(lambda: lab._stop.layout.display == "")
    until(lambda: len(client.asked) == 3)  # those that have not begun when it stops never come
    assert any(lab._status in box.children and lab._go in box.children for box in boxes(lab))
    assert {asked["max_completion_tokens"] for asked in client.asked} == {17}
    assert {asked["temperature"] for asked in client.asked} == {1}
    lab._stop.click()
    assert lab.wait(60)
    assert lab.error == ""
    assert lab._stop.layout.display == "none"
    assert lab._status.value == ""
    assert lab.data()["reward"].tolist()[0] == 1.0
    assert lab.data()["reward"].isna().tolist() == [False, True, True], "not graded is no zero"
    assert "the model was not run" in lab.data()["details"][1]

    client.goes_on.set()  # what was under way is kept when it comes
    until(lambda: len(lab._bench._samples) == 3)
    lab._go.click()
    assert lab.wait(60)
    assert lab.data()["reward"].tolist() == [1.0, 0.0, 0.0]
    assert len(client.asked) == 3
    lab.close()


def until(is_so: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def boxes(lab: GraderLab) -> list[Any]:
    """The rows of a panel's controls."""
    return [each for each in lab.widget().children if hasattr(each, "children")]


def test_swapped_answers_are_those_of_other_rows() -> None:
    lab = GraderLab(ROWS, grader=EXACT, rows=[3, 4, 5], answers="swapped")
    frame = lab.grade()
    assert frame["answer"].tolist() == ["<b>4</b>", "<b>5</b>", "<b>3</b>"]
    assert frame["reward"].tolist() == [0.0, 0.0, 0.0]


def test_a_row_without_a_reference_is_not_graded() -> None:
    lab = GraderLab(
        [{"messages": ROWS[0]["messages"]}], grader=python("def grade(s, i):\n    return 1")
    )
    frame = lab.grade()
    assert frame["reward"].isna().all()
    assert "no reference answer" in frame["details"][0]


@pytest.mark.parametrize(
    ("words", "message", "marked"),
    [
        ('{\n "type": oops\n}', "line 2 of the JSON", "▶   2"),
        ("[]", "one JSON object", None),
        ('{"type": "python", "type": "multi"}', "the key 'type' appears twice", None),
        ('{"type": "string_chek"}', "must be one of string_check", None),
        (
            json.dumps(python("def grade(sample, item):\n    retrun 1")),
            "line 2",
            "▶   2      retrun 1",
        ),
        (json.dumps(EXACT | {"input": "{{sample.text}}"}), "input", None),
    ],
)
def test_what_is_wrong_with_a_spec_is_shown_where_it_stands(
    words: str, message: str, marked: str | None
) -> None:
    lab = GraderLab(ROWS, grader=EXACT)
    lab.text = words
    assert message in lab.problem
    assert 'role="alert"' in lab.to_html()
    if marked:
        assert marked in lab.to_html()
    with pytest.raises(GraderSpecError):
        lab.grade()


def test_a_failing_python_grader_shows_its_line() -> None:
    lab = GraderLab(ROWS, grader=python(BROKEN), rows=[0])
    assert lab.grade()["reward"].isna().all()
    html = lab.to_html()
    assert "ZeroDivisionError" in html
    assert "▶   3      return 1 / (len(wanted) - 1)" in html
    assert "the grader failed" in html
    lab.close()


def test_the_traceback_stands_beside_the_editor_until_it_is_mended(live: None) -> None:
    lab = shown(GraderLab(ROWS, grader=python(BROKEN), rows=[0]))
    lab.row = 0
    assert "▶   3" in lab._failure.value
    assert "Row 1: no reward" in lab._full.value
    assert "▶" not in lab._full.value  # said once
    source = lab._form.field("source")
    source.value = source.value.replace("- 1", "+ 1")
    assert lab.wait(60)
    assert lab._failure.value == ""
    assert lab.data()["reward"].tolist() == [0.5]
    lab.close()


def test_form_and_json_stay_in_step(live: None) -> None:
    lab = shown(GraderLab(ROWS, grader=EXACT, rows=[0]))
    lab._form.field("operation").value = "ne"
    assert lab.wait(60)
    assert lab.spec["operation"] == "ne"
    assert json.loads(lab._json.value)["operation"] == "ne"
    assert lab.data()[["before", "reward"]].to_numpy().tolist() == [[1.0, 0.0]]
    lab._json.value = json.dumps(EXACT | {"operation": "like"})
    assert lab._form.field("operation").value == "like"
    lab._json.value = "{"
    assert lab._go.disabled
    assert "of the JSON" in lab._wrong.value
    assert lab._form.field("operation").value == "like"
    lab._json.value = json.dumps(EXACT)
    assert not lab._go.disabled
    assert lab._wrong.value == ""


def test_graders_are_combined_and_taken_apart_in_the_form(live: None) -> None:
    lab = shown(GraderLab(ROWS, grader=EXACT, rows=[0]))
    form = lab._form
    form.add.click()
    assert lab.wait(60)
    assert list(lab.spec["graders"]) == ["exact", "grader_1"]
    assert lab.spec["calculate_output"] == "0.5 * exact + 0.5 * grader_1"
    form.kind.value = "text_similarity"
    form.field("evaluation_metric").value = "rouge_l"
    assert lab.spec["graders"]["grader_1"]["evaluation_metric"] == "rouge_l"
    form.formula.value = "exact * grader_1"
    assert lab.wait(60)
    assert lab.error == ""
    assert "exact * grader_1" in lab._full.value
    assert "1.000 * 1.000 = 1.000" in lab._full.value
    form.remove.click()
    assert list(lab.spec["graders"]) == ["exact"]
    assert lab.problem == ""


def test_every_template_has_a_menu_of_its_fields(live: None) -> None:
    """What it inserts is the browser's work, see test_lab_rows_and_graders."""
    lab = shown(GraderLab(ROWS, grader=EXACT))
    control = lab._form.field("reference")
    row = next(each for each in lab._form.body.children if control in getattr(each, "children", ()))
    assert "<option>item.topic</option>" in row.children[1].value
    assert "insertText" in row.children[1].value


TICKETS = [
    {"messages": [{"role": "user", "content": f"t{n}"}], "category": ("billing", "access")[n % 2]}
    for n in range(20)
]
JSON_EXACT = EXACT | {
    "input": "{{sample.output_json.category}}",
    "reference": "{{item.category}}",
}


@pytest.mark.parametrize(
    ("edit", "param", "message"),
    [
        ({"reference": "{{item.categry}}"}, "reference", "no row has a key `categry`"),
        ({"input": "{{sample.output_json.categry}}"}, "input", "no answer has a field `categry`"),
    ],
)
def test_a_misspelt_template_is_the_graders_fault(
    live: None, edit: dict[str, str], param: str, message: str
) -> None:
    lab = GraderLab(TICKETS, grader=JSON_EXACT, rows=[0, 1])
    lab.propose_format()
    shown(lab)
    assert lab.data()["reward"].tolist() == [1.0, 1.0]
    assert "rk-stale" not in lab._table.value
    lab._form.field(param).value = edit[param]
    assert lab.wait(60)
    assert message in lab._wrong.value
    assert "did you mean category?" in lab.problem
    assert "rk-wrong" in lab._form.field(param)._dom_classes
    assert "rk-stale" in lab._table.value  # the grades of the grader before are no grades of this
    assert "✓ graded" not in lab._table.value
    lab._form.field(param).value = JSON_EXACT[param]
    assert lab.wait(60)
    assert lab.problem == ""
    assert "rk-wrong" not in lab._form.field(param)._dom_classes
    assert "✓ graded" in lab._table.value


def test_a_response_format_is_proposed_from_the_grader_and_the_rows(
    tmp_path: Path, live: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "abilities", lambda _: frozenset())
    client: Any = object()
    lab = shown(GraderLab(TICKETS, grader=JSON_EXACT))
    assert lab.response_format is None
    assert "needed" in lab._format_fold.get_title(0)
    lab._press_propose()
    assert lab.response_format is not None
    schema = lab.response_format["json_schema"]["schema"]
    assert schema["required"] == ["category"]
    assert schema["properties"] == {"category": {"type": "string", "enum": ["billing", "access"]}}
    assert lab._format_fold.get_title(0) == "Response format"
    path = lab.save_format(tmp_path / "format.json")
    launch = JobLauncher(client=client, grader=lab.save(tmp_path / "g.json"), response_format=path)
    assert (launch.grader, launch.response_format) == (lab.spec, lab.response_format)
    lab.spec = EXACT
    with pytest.raises(InputError, match="answers may be any text"):
        lab.propose_format()


def test_sub_graders_have_names(live: None) -> None:
    lab = shown(GraderLab(ROWS, grader=EXACT, rows=[0]))
    lab._form.add.click()
    lab._form.title.value = "topic"
    assert list(lab.spec["graders"]) == ["exact", "topic"]
    assert lab.spec["calculate_output"] == "0.5 * exact + 0.5 * topic"
    assert lab._form.part.value == "topic"
    lab._form.title.value = "exact"
    assert "is taken" in lab.error
    lab._form.title.value = "two words"
    assert "letters, digits and _" in lab.error
    assert list(lab.spec["graders"]) == ["exact", "topic"]


def test_every_type_of_the_form_is_a_grader(live: None) -> None:
    lab = shown(GraderLab(ROWS, grader=EXACT, rows=[0]))
    for kind in lab._form.kind.options:
        lab._form.kind.value = kind
        assert lab.error == ""
        assert lab.problem == ""
        assert lab.spec["type"] == kind
    lab.close()


def test_clicks_choose_rows_and_open_grades(live: None) -> None:
    lab = shown(GraderLab(ROWS, grader=EXACT))
    lab._which.value = "3, 6-8"
    assert lab.wait(60)
    assert lab.rows == [2, 5, 6, 7]
    lab._act_open("6")
    assert "Row 7: reward" in lab._full.value
    lab._which.value = "2, x"
    assert "write 1, 5, 10-14" in lab.error
    lab._which.value = "99"
    assert "there is no row 99; rows are numbered 1 to 20" in lab.error


def test_the_audit_is_shown_until_the_grader_changes(live: None) -> None:
    lab = shown(GraderLab(ROWS, grader=EXACT, rows=[0]))
    lab._try.click()
    assert lab.wait(60)
    assert lab.error == ""
    assert "What the grader rewards, 20 rows" in lab._cheats.value
    lab._form.field("operation").value = "ne"
    assert lab._cheats.value == ""


def test_a_grader_of_a_folder_is_saved_where_a_job_finds_it(
    tmp_path: Path, live: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    shutil.copy(datasets.bundled("tiny_copy").train, "recipes")
    lab = GraderLab("recipes")
    lab.widget()
    assert lab._keep.path.value == str(Path("recipes/grader.json"))
    lab._keep.button.click()
    assert datasets.load("recipes").grader == lab.spec
    assert lab._format_fold.selected_index is None  # this grader takes any text
    lab.spec = EXACT | {"input": "{{sample.output_json.answer}}"}
    lab._keep.button.click()
    assert lab._format_fold.selected_index == 0  # and this one needs the other file too
    lab.close()


def test_a_grader_is_saved_and_read_back(tmp_path: Path, live: None) -> None:
    lab = shown(GraderLab(ROWS, grader=EXACT))
    path = tmp_path / "made" / "grader.json"
    lab._keep.path.value = str(path)
    lab._keep.button.click()
    assert lab.error == ""
    assert datasets.read_json(path) == lab.spec
    lab.spec = EXACT | {"operation": "ne"}
    lab._keep.button.click()  # its own file is kept up to date
    assert datasets.read_json(path) == lab.spec
    path.write_text("{}")
    lab._keep.button.click()
    assert path.read_text() == "{}"
    assert lab._keep.button.description == "Replace grader.json?"
    with pytest.raises(InputError, match="holds something else"):
        lab.save(path)
    lab._keep.button.click()
    assert datasets.read_json(path) == lab.spec
    assert lab._keep.button.description == "Save as JSON"
    compile(lab.client_code(), "code.py", "exec")
    assert "rk-copy" in lab._code.value


def test_rendered_templates() -> None:
    judge = {
        "type": "score_model",
        "name": "j",
        "model": "m",
        "input": [
            {"role": "system", "content": "Rate {{item.topic}}"},
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "{{sample.output_json.a}}"}],
            },
        ],
    }
    told = render_all(judge, Sample.from_text('{"b": 1}'), {"topic": "law"})
    assert [(each.field, each.text) for each in told] == [
        ("input[0]", "Rate law"),
        ("input[1]", None),
    ]
    assert "`sample.output_json` has the keys: b" in told[1].problem


def test_template_fields_come_from_rows_schema_and_answers() -> None:
    items = [{"messages": [], "facts": {"a b": 1, "c": [2]}, "label": "x"}]
    assert template_fields(items, None, ['{"verdict": 1}', "no"]) == [
        "item.facts",
        "item.facts['a b']",
        "item.facts.c",
        "item.label",
        "sample.output_text",
        "sample.output_json.verdict",
    ]
    schema = {"json_schema": {"schema": {"properties": {"x": {}}}}}
    assert template_fields([], schema) == ["sample.output_text", "sample.output_json.x"]


def test_a_rubric_has_a_line_of_fields_for_each_criterion() -> None:
    lab = GraderLab(ROWS, grader=EXACT)
    lab.widget()
    form = lab._form
    form.kind.value = "rubric"
    assert lab.spec["criteria"] == [
        {"text": "Answers the question", "weight": 1.0, "required": True, "check": "correctness"}
    ]
    first, add = form.field("criteria").children
    words, weight, required, check, remove = first.children
    assert remove.disabled, "a rubric has at least one criterion"
    words.value, weight.value, required.value, check.value = (
        "Names a number",
        2.5,
        False,
        "presence",
    )
    add.click()
    assert [each["text"] for each in lab.spec["criteria"]] == [
        "Names a number", "Answers the question"
    ]  # fmt: skip
    assert lab.spec["criteria"][0] == {
        "text": "Names a number", "weight": 2.5, "required": False, "check": "presence"
    }  # fmt: skip
    form.field("criteria").children[0].children[4].click()
    assert [each["text"] for each in lab.spec["criteria"]] == ["Answers the question"]
    lab.spec = {**lab.spec, "criteria": "{{item.topic}}"}
    [place] = form.field("criteria").children
    place.value = "{{item.rubric}}"
    assert lab.spec["criteria"] == "{{item.rubric}}"
    place.value = "everything is fine"
    assert "one place in the row" in lab.problem


def test_a_relative_grader_has_a_form_and_an_anchor_that_may_be_empty() -> None:
    lab = GraderLab(ROWS, grader=EXACT)
    lab.widget()
    form = lab._form
    form.kind.value = "relative"
    assert lab.spec["type"] == "relative"
    form.field("anchor").value = "{{item.answer}}"
    form.field("instructions").value = "Short is better."
    assert (lab.spec["anchor"], lab.spec["instructions"]) == ("{{item.answer}}", "Short is better.")
    form.field("anchor").value = ""
    assert "anchor" not in lab.spec
