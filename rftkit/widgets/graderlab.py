"""GraderLab: write a grader, run it on real rows, and see every step and the effect of an edit.

The spec is JSON text, and the form is another way to edit it. The code that grades in training also
grades here (`graderbench`). The fields of the form are in `graderform`, the markup of grades is in
`views.grading`.
"""

from __future__ import annotations

import json
import pprint
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets
from traitlets import Dict, Enum, Int, List, Unicode

from rftkit import datasets
from rftkit.errors import GraderSpecError, InputError
from rftkit.graders import Audit, Sample, validate, variables
from rftkit.graders.tracing import render_all
from rftkit.strictjson import parse_strictly
from rftkit.views.grading import audited, failure, grade_in_full, grades, spec_problem
from rftkit.views.markup import Html, copyable, join, note, wrap
from rftkit.views.source import spec as spec_view
from rftkit.wholefile import check_output
from rftkit.widgets.graderbench import Bench, Line, calls_out, evenly_spaced
from rftkit.widgets.graderform import GraderForm
from rftkit.widgets.panel import Panel
from rftkit.widgets.rowsource import dataset_of
from rftkit.widgets.savebox import SaveBox, Saver
from rftkit.widgets.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from openai import OpenAI

__all__ = ["GraderLab"]

FIRST_ROWS = 8
"""Rows selected at first, evenly spaced over the dataset."""
SAVED_AS = "grader.json"
FORMAT_SAVED_AS = "response_format.json"


class GraderLab(Panel):
    """Write a grader and try it on the rows of a dataset.

    Every control is an attribute: `lab.spec = {…}` (or `lab.text`, its JSON), `lab.rows = [0, 5]`,
    `lab.answers = "pasted"`, `lab.pasted = "…"`, `lab.row = 5` to see that grade step by step.
    `lab.grade()` runs it, `lab.data()` returns the grades, `lab.audit()` reports which cheats pay,
    `lab.save("grader.json")` writes it to a file. A grader that reads JSON needs a response format:
    `lab.propose_format()` makes one from the rows, `lab.save_format()` writes it.

    Args:
        source: rows, as for `RowBrowser`; a `datasets.Dataset` provides its grader and format.
        grader: the initial spec.
        response_format: as in the job; answers that are not JSON are then unscorable.
        client: samples from models; default `rftkit.connect()`, when needed.
        state: any of `text`, `rows`, `answers`, `pasted`, `model`, `max_completion_tokens`, `row`,
            `response_format`.
    """

    text = Unicode("", help="The spec as JSON text; it may be invalid while you type.")
    rows = List(Int(), help="Numbers of the rows to grade, from 0 (the panel shows 1).")
    answers = Enum(
        ("reference", "swapped", "pasted", "sampled"),
        "reference",
        help="Which answers to grade: the reference answers, those of other rows (wrong, but well "
        "written), one pasted text, or sampled answers.",
    )
    pasted = Unicode("", help="The answer that is graded for every row when `answers` is `pasted`.")
    model = Unicode("", help="The model to sample from when `answers` is `sampled`.")
    max_completion_tokens = Int(
        256, min=1, help="A longer sampled answer is cut off; metadata of a job has the same name."
    )
    row = Int(None, allow_none=True, help="Number of the row whose grade is shown step by step.")
    response_format = Dict(
        allow_none=True, default_value=None, help="What constrains every answer, as in the job."
    )

    def __init__(
        self,
        source: Any,
        *,
        grader: Mapping[str, Any] | None = None,
        response_format: Mapping[str, Any] | None = None,
        client: OpenAI | None = None,
        **state: Any,
    ) -> None:
        self._folder = Path()
        if (found := dataset_of(source)) is not None:
            source, grader = found, grader or found.grader
            response_format = response_format or found.response_format
            if found.name not in datasets.bundled_names():
                self._folder = found.train.parent  # where a job looks for its grader
        self._bench = Bench(source, response_format, client)
        self._saver, self._halt = Saver(), threading.Event()
        self._lines: list[Line] = []
        self._graded_with = ""
        self._audit: Audit | None = None
        self.problem = ""
        """Why the spec cannot be used; empty when it can."""
        self._wrong_at = ""
        self._is_spec = False
        numbers = evenly_spaced(len(self._bench.rows), FIRST_ROWS)
        self._fields = self._bench.template_fields(numbers)
        first = grader or self._bench.draft(numbers)
        if grader is None and response_format is None:
            response_format = self._bench.draft_format(dict(first))
        given = {"text": _dumps(first), "rows": numbers, "response_format": response_format}
        super().__init__(**given | state)
        self._take_format()
        self._check()

    # for Python

    @property
    def spec(self) -> dict[str, Any]:
        """The validated grader, as on the wire.

        Raises:
            GraderSpecError: it is invalid.
        """
        return validate(_parse(self.text))

    @spec.setter
    def spec(self, value: Mapping[str, Any]) -> None:
        self.text = _dumps(value)

    def grade(self) -> pd.DataFrame:
        """Grade the selected rows now, and return the table of grades."""
        self._show_lines(self._run_grader(Task(self._show_progress)))
        return self.data()

    def data(self) -> pd.DataFrame:
        """One line per graded row: `reward`, `before` (previous grader), `outcome`, sub-rewards."""
        import pandas as pd

        records = [line.record() for line in self._lines]
        return pd.DataFrame(records).set_index("row") if records else pd.DataFrame()

    def audit(self) -> Audit:
        """What cheap tricks earn compared with the reference answers of rows of the dataset."""
        found = self._bench.audit(self.spec)
        self._show_audit(found)
        return found

    def stop(self) -> None:
        """Ask for no further answers; those that are there are graded."""
        self._halt.set()

    def ask_again(self) -> None:
        """Discard sampled answers, so that the next grading samples new ones."""
        self._bench.discard_answers()

    def save(self, path: str | Path = SAVED_AS, *, replace: bool = False) -> Path:
        """Write the spec as JSON, ready for `rftkit job create` or `JobLauncher(grader=path)`.

        Raises:
            GraderSpecError: the spec is invalid.
            InputError: `path` is the dataset, holds something else, or cannot be written.
        """
        return self._write(path, self.spec, replace)

    def save_format(self, path: str | Path = FORMAT_SAVED_AS, *, replace: bool = False) -> Path:
        """Write the response format as JSON.

        Raises:
            InputError: there is none, `path` holds something else, or cannot be written.
        """
        if self.response_format is None:
            raise InputError("there is no response format; propose_format() makes one")
        return self._write(path, self.response_format, replace)

    def propose_format(self) -> dict[str, Any]:
        """A response format for the fields that the grader reads, with the values of the rows.

        Raises:
            InputError: the grader reads no JSON.
        """
        found = self._bench.draft_format(self.spec)
        if found is None:
            raise InputError(
                "the grader reads no {{sample.output_json.…}}, so answers may be any text"
            )
        self.response_format = found
        return found

    def _write(self, path: str | Path, value: Mapping[str, Any], replace: bool) -> Path:
        name = getattr(self._bench.rows, "name", None)
        checked = check_output(path, [name])
        return self._saver.write(checked, _dumps(value) + "\n", replace=replace)

    def client_code(self) -> str:
        """Python that grades the first chosen row through the official client."""
        number = self.rows[0] if self.rows else 0
        line = next((line for line in self._lines if line.row == number), None)
        item = self._bench.items([number])[0]
        return _CODE.format(
            grader=_literal(_parse(self.text)),
            item=_literal({key: value for key, value in item.items() if key != "messages"}),
            answer=(line.answer if line else None) or self.pasted,
        )

    def to_html(self, *, max_bytes: int = 300_000) -> Html:
        """The grader, its grades, the open grade step by step, and the audit."""
        if not self._lines and not self.problem and not calls_out(_parse(self.text)):
            self._show_lines(self._run_grader(Task(self._show_progress)))
        parts = [self._problem_html() if self.problem else spec_view(_parse(self.text))]
        parts.append(self._grades_html(live=False))
        parts += [part for part in (self._full_html(), self._audit_html()) if part]
        return join(parts, "\n\n".join(part.plain for part in parts[(not self.problem) :]))

    # the live panel

    def _build(self) -> Sequence[ipywidgets.Widget]:
        self._form = GraderForm(self._take_form, self._guard, self._fields)
        self._make_controls()
        self._table, self._full, self._cheats, self._code = (self._html() for _ in range(4))
        self._wrong, self._failure = self._html(), self._html()
        half = ipywidgets.Layout(flex="1 1 26rem", min_width="0")
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        halves = ipywidgets.Layout(flex_flow="row wrap", align_items="flex-start", grid_gap="1rem")
        right = ipywidgets.VBox(
            [self._html("As JSON"), self._json, self._wrong, self._failure], layout=half
        )
        if not self._lines:
            self._start_if_local()
        return [
            ipywidgets.HBox([self._form.box, right], layout=halves),
            ipywidgets.HBox([self._which, self._whose], layout=row),
            ipywidgets.HBox([self._models, self._tokens], layout=row),
            self._paste,
            ipywidgets.HBox([self._go, self._stop, self._try, self._status], layout=row),
            self._table,
            self._full,
            self._cheats,
            self._keep.box,
            self._format_fold,
            self._code,
        ]

    def _make_controls(self) -> None:
        self._json = ipywidgets.Textarea(continuous_update=False, rows=14, layout=_wide())
        self._json.add_class("rk-code")
        self._which = ipywidgets.Text(
            description="Rows",
            continuous_update=False,
            placeholder="1, 5, 10-14",
            layout=ipywidgets.Layout(width="26rem", max_width="100%"),
        )
        self._which.observe(lambda c: self._guard(lambda: self._take_rows(c["new"])), "value")
        self._whose = ipywidgets.ToggleButtons(
            options=["reference", "swapped", "pasted", "sampled"],
            description="Answers",
            tooltips=[
                "The row's reference answer",
                "The reference answer of the next of these rows: wrong, but well written",
                "Your own text",
                "Sample from a model now",
            ],
            style={"button_width": "auto"},
        )
        self._paste = ipywidgets.Textarea(
            description="Answer", continuous_update=False, rows=4, layout=_wide()
        )
        self._models = ipywidgets.Combobox(
            description="Model",
            placeholder="name of a model",
            layout=ipywidgets.Layout(max_width="100%"),
        )
        self._tokens = ipywidgets.BoundedIntText(
            description="Most tokens",
            min=1,
            max=100_000,
            tooltip="Longer answers are cut off, as with max_completion_tokens in a job's metadata",
            style={"description_width": "6rem"},
            layout=ipywidgets.Layout(width="12rem"),
        )
        for name, widget in (
            ("text", self._json),
            ("answers", self._whose),
            ("pasted", self._paste),
            ("model", self._models),
            ("max_completion_tokens", self._tokens),
        ):
            self._bind(name, widget)
        tip = "Compare what cheap tricks earn with the reference answers"
        self._go = self._button(
            "Grade", self._start_grading, "Grade the chosen rows", button_style="primary"
        )
        self._try = self._button("Audit", self._start_audit, tip)
        tip = "Stop sampling, and grade the answers that have arrived"
        self._stop = self._button("Stop", self.stop, tip)
        self._stop.layout.display = "none"
        self._keep = self._save_box("Save as JSON", SAVED_AS, lambda: self.spec, self._press_save)
        self._make_format_controls()

    def _make_format_controls(self) -> None:
        self._format_json = ipywidgets.Textarea(continuous_update=False, rows=8, layout=_wide())
        self._format_json.add_class("rk-code")
        self._format_json.observe(
            lambda change: self._guard(lambda: self._read_format(change["new"])), "value"
        )
        self._format_note = self._html()
        propose = self._button(
            "Propose from the rows",
            self._press_propose,
            "Every field that the grader reads, with the values that the rows have there",
        )
        self._format_keep = self._save_box(
            "Save as JSON", FORMAT_SAVED_AS, lambda: self.response_format or {}, self.save_format
        )
        parts = [self._format_note, propose, self._format_json, self._format_keep.box]
        self._format_fold = ipywidgets.Accordion(
            [ipywidgets.VBox(parts)], titles=("Response format",)
        )

    def _save_box(
        self,
        label: str,
        name: str,
        value: Callable[[], Mapping[str, Any]],
        save: Callable[..., Path],
    ) -> SaveBox:
        def replaces(path: str) -> bool:
            return self._saver.replaces(Path(path), _dumps(value()) + "\n")

        button = self._button(label, lambda: box.press(), "Write it to the file")
        box = SaveBox(
            button,
            str(self._folder / name),
            replaces,
            lambda path, replace: save(path, replace=replace),
        )
        return box

    def _press_save(self, path: str, *, replace: bool) -> Path:
        if _reads_json(self.spec):
            self._format_fold.selected_index = 0  # a job needs the response format too
        return self.save(path, replace=replace)

    def _press_propose(self) -> None:
        self.propose_format()

    def _read_format(self, words: str) -> None:
        value = _parse(words) if words.strip() else None
        if value != self.response_format:
            self.set(response_format=value)

    def _take_format(self) -> None:
        """Use this response format from now on, for answers and for the fields of templates."""
        self._bench.format = self.response_format
        self._fields = self._bench.template_fields(self.rows)

    def _changed(self, names: Any) -> None:
        if "response_format" in names:
            self._take_format()
        if names & {"text", "response_format"}:
            self._check()
        if (
            names & {"text", "rows", "answers", "pasted", "response_format"}
            and self._root is not None
        ):
            self._start_if_local()

    def _draw(self) -> None:
        self._wrong.value = str(self._problem_html()) if self.problem else ""
        if self._is_spec:
            self._form.names = self._fields
            self._form.show(_parse(self.text))
        self._form.mark(self._wrong_at)
        self._draw_format()
        self._which.value = _format_rows(self.rows)
        self._paste.layout.display = "" if self.answers == "pasted" else "none"
        for widget in (self._models, self._tokens):
            widget.layout.display = "" if self.answers == "sampled" else "none"
        if self.answers == "sampled" and not self._models.options:
            self._work(self._list_models, self._show_models, "Listing models", slot="models")
        self._go.disabled = self._try.disabled = bool(self.problem)
        self._draw_grades()

    def _draw_format(self) -> None:
        shown = _dumps(self.response_format) if self.response_format else ""
        if self._format_json.value.strip() != shown:
            self._format_json.value = shown
        needed = self._is_spec and _reads_json(_parse(self.text))
        words = "The grader takes any text, so the job needs no response format."
        if needed:
            what = "this response format: save it too" if shown else "a response format"
            words = f"The grader reads JSON, so the job needs {what}."
        self._format_note.value = note(words)
        missing = " – needed: this grader reads JSON" if needed and not shown else ""
        self._format_fold.set_title(0, f"Response format{missing}")

    def _draw_grades(self) -> None:
        self._table.value = self._grades_html(live=True)
        self._full.value = self._full_html(live=True) or ""
        self._failure.value = self._failure_html() or ""
        self._cheats.value = self._audit_html() or ""
        if not self.problem:
            self._code.value = wrap(
                copyable("Copy as JSON", _dumps(_parse(self.text)))
                + copyable("Copy as client code", self.client_code())
            )

    def _act_open(self, number: str) -> None:
        self.row = None if self.row == int(number) else int(number)

    def _take_form(self, spec: dict[str, Any]) -> None:
        self.text = _dumps(spec)

    def _take_rows(self, words: str) -> None:
        if words != _format_rows(self.rows):
            self.rows = _parse_rows(words, len(self._bench.rows))

    def _list_models(self, task: Task) -> list[str]:
        return [model.id for model in self._bench.client().models.list()]

    def _show_models(self, names: list[str]) -> None:
        self._models.options = names
        if not self.model and names:
            self.model = names[0]

    # grading

    def _start_if_local(self) -> None:
        """Grade again at once, unless that calls a model or another service."""
        if not self.problem and self.answers != "sampled" and not calls_out(_parse(self.text)):
            self._start_grading()

    def _start_grading(self) -> None:
        self._work(self._run_grader, self._show_lines, "Grading", slot="grade")

    def _run_grader(self, task: Task) -> list[Line]:
        spec, numbers = self.spec, list(self.rows)
        if self.answers == "sampled":
            samples = self._sampled(numbers, task)
            return self._bench.grade(
                spec, numbers, samples, task, "the model was not run, or it failed"
            )
        if self.answers == "pasted":
            samples = [self._bench.sample(self.pasted) for _ in numbers]
        else:
            samples = self._bench.references(spec, numbers)
        if self.answers == "swapped":
            samples = [*samples[1:], *samples[:1]]
        return self._bench.grade(spec, numbers, samples, task)

    def _sampled(self, numbers: Sequence[int], task: Task) -> list[Sample | None]:
        self._halt.clear()
        self._is_sampling(True)
        try:
            return self._bench.ask(
                self.model, numbers, self.max_completion_tokens, task, self._halt
            )
        finally:
            self._is_sampling(False)

    def _is_sampling(self, is_so: bool) -> None:
        if self._root is not None:
            self._stop.layout.display = "" if is_so else "none"

    def _show_lines(self, lines: list[Line]) -> None:
        """Take new grades; the previous grader's reward for the same answer becomes `before`."""
        edited = self.text != self._graded_with
        old = {(line.row, line.answer): line for line in self._lines}
        for line in lines:
            if (last := old.get((line.row, line.answer))) is not None:
                line.before = last.grade.reward if edited else last.before
        self._lines, self._graded_with = lines, self.text
        if self.row is None and lines:
            self.row = lines[0].row
        if self._root is not None:
            self._draw_grades()

    def _start_audit(self) -> None:
        self._work(
            lambda _: self._bench.audit(self.spec), self._show_audit, "Trying cheats", slot="audit"
        )

    def _show_audit(self, found: Audit) -> None:
        self._audit = found
        if self._root is not None:
            self._draw_grades()

    def _check(self) -> None:
        self._audit, self._is_spec = None, False
        self.problem = self._wrong_at = ""
        try:
            spec = validate(_parse(self.text))
            self._is_spec = True
            for each in self._bench.misspelt(spec, self._fields):
                raise GraderSpecError(each.message, param=each.param)
        except InputError as error:
            self.problem, self._wrong_at = str(error), error.param or ""

    def close(self) -> None:
        """Stop background work; end the processes of python graders."""
        super().close()
        self._bench.close()

    # markup

    def _grades_html(self, *, live: bool) -> Html:
        keys = dict.fromkeys(key for line in self._lines for key in line.grade.sub_rewards)
        lines = [line.record() for line in self._lines]
        stale = bool(self.problem)
        return grades(lines, list(keys), opened=self.row, live=live, stale=stale)

    def _full_html(self, *, live: bool = False) -> Html | None:
        line = next((line for line in self._lines if line.row == self.row), None)
        if line is None or self.problem or line.sample is None:
            return None
        spec, beside = self.spec, self._failed_line() if live else None
        return grade_in_full(
            line.record(),
            spec=spec,
            grade=asdict(line.grade),
            rendered=[asdict(each) for each in render_all(spec, line.sample, line.item)],
            item=line.item,
            with_errors=beside is None or beside.grade.errors != line.grade.errors,
        )

    def _failed_line(self) -> Line | None:
        """The first line whose grade failed although there was an answer, or None."""
        failed = (line for line in self._lines if line.grade.outcome == "failed" and line.sample)
        return next(failed, None)

    def _failure_html(self) -> Html | None:
        line = self._failed_line()
        if line is None or self.problem:
            return None
        return failure(line.record(), spec=self.spec, grade=asdict(line.grade))

    def _audit_html(self) -> Html | None:
        if (found := self._audit) is None:
            return None
        return audited(found.to_frame(), found.findings(), found.num_rows)

    def _problem_html(self) -> Html:
        return spec_problem(self.problem, self.text)


_CODE = """import rftkit

client = rftkit.connect()  # or openai.OpenAI()
grader = {grader}
run = client.fine_tuning.alpha.graders.run(
    grader=grader,
    item={item},
    model_sample={answer!r},
)
print(run.reward, run.sub_rewards, run.metadata.errors)
"""


def _wide() -> ipywidgets.Layout:
    """A new layout each time: hiding a widget hides every widget with the same layout."""
    return ipywidgets.Layout(width="100%")


def _reads_json(spec: Mapping[str, Any]) -> bool:
    return any(name.startswith("sample.output_json") for name in variables(spec))


def _literal(value: Any) -> str:
    return pprint.pformat(value, sort_dicts=False, width=88)


def _dumps(spec: Mapping[str, Any]) -> str:
    return json.dumps(spec, indent=2, ensure_ascii=False)


def _parse(words: str) -> dict[str, Any]:
    try:
        value = parse_strictly(words)
    except json.JSONDecodeError as error:
        raise GraderSpecError(
            f"line {error.lineno} of the JSON, column {error.colno}: {error.msg}"
        ) from None
    except ValueError as error:
        raise GraderSpecError(f"the JSON cannot be used: {error}") from None
    if not isinstance(value, dict):
        raise GraderSpecError('a grader is one JSON object, such as {"type": "string_check", …}')
    return value


def _parse_rows(words: str, size: int) -> list[int]:
    """`1, 5, 10-14` as numbers from 0.

    Raises:
        InputError: the text has another form, or names rows that do not exist.
    """
    numbers: list[int] = []
    for part in words.replace(",", " ").split():
        found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        if found is None:
            raise InputError(f"cannot read {part!r} as rows; write 1, 5, 10-14")
        numbers += range(int(found[1]) - 1, int(found[2] or found[1]))
    if missing := [number for number in numbers if not 0 <= number < size]:
        raise InputError(f"there is no row {missing[0] + 1}; rows are numbered 1 to {size:,}")
    return list(dict.fromkeys(numbers))


def _format_rows(numbers: Sequence[int]) -> str:
    return ", ".join(str(number + 1) for number in numbers)
