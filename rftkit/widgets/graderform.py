"""The form of GraderLab: one grader spec as editable fields.

`show` fills the fields from a spec; every edit passes the new spec to `edited`. Validating and
running a spec are elsewhere.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import ipywidgets

from rftkit.errors import InputError
from rftkit.graders.template import Path
from rftkit.graders.types import Relative, Rubric, StringCheck, TextSimilarity
from rftkit.jsontext import parse_json
from rftkit.strictjson import parse_strictly
from rftkit.views.markup import html, join
from rftkit.views.rows import REFUSED
from rftkit.widgets.criteriaform import CriteriaForm

__all__ = ["GraderForm", "template_fields"]

Spec = dict[str, Any]

CHOICES = {
    "operation": get_args(StringCheck.model_fields["operation"].annotation),
    "evaluation_metric": get_args(TextSimilarity.model_fields["evaluation_metric"].annotation)[1:],
}
"""Choices of a field. `cosine` is left out because jobs do not accept it."""
FIELDS = {
    "string_check": ("operation", "input", "reference"),
    "text_similarity": ("evaluation_metric", "input", "reference"),
    "python": ("source",),
    "score_model": ("model", "input", "range"),
    "rubric": ("model", "criteria", "input"),
    "relative": ("model", "instructions", "input", "anchor"),
    "endpoint": ("url",),
}
LABELS = {"evaluation_metric": "metric", "source": "grade(…)"}
SOURCE = '''def grade(sample, item):
    """Return a number for one answer; by convention, 1 is best."""
    return 1.0 if sample["output_text"].strip() else 0.0
'''
OPTIONAL = ("instructions", "anchor")
"""Fields that are left out when they are empty."""
JUDGE = "smollm2-135m-instruct"
WIDE = {"width": "100%", "max_width": "100%"}


_INSERT = """const row = this.closest('.widget-hbox');
const field = row?.querySelector('input, textarea'), name = this.value;
this.value = '';
if (field && name) {
  field.focus();
  document.execCommand('insertText', false, '{{' + name + '}}');
  field.dispatchEvent(new Event('change', {bubbles: true}));
}"""


class GraderForm:
    """Fields for a grader, or for one sub-grader of a `multi` grader."""

    def __init__(
        self,
        edited: Callable[[Spec], None],
        guard: Callable[[Callable[[], None]], None],
        fields: Sequence[str],
    ) -> None:
        """`fields` are what a template may name, such as `item.answer`."""
        self._edited, self._guard, self.names = edited, guard, list(fields)
        self._spec: Spec = {}
        self._showing = False
        self._fields: dict[str, ipywidgets.Widget] = {}
        self.title = ipywidgets.Text(
            description="Name", continuous_update=False, layout=_wide(max_width="18rem")
        )
        self.part = ipywidgets.Dropdown(description="Grader", layout=_wide(max_width="18rem"))
        self.kind = ipywidgets.Dropdown(
            description="Type", options=list(FIELDS), layout=_wide(max_width="24rem")
        )
        self.formula = ipywidgets.Text(
            description="Formula", continuous_update=False, layout=_wide()
        )
        self.add = self._button("Add a grader", self._add, "plus", "Combine with another grader")
        self.remove = self._button("Remove", self._remove, "trash", "Remove this grader")
        self.body = ipywidgets.VBox(layout=_wide())
        row = ipywidgets.Layout(flex_flow="row wrap", **WIDE)
        self.box = ipywidgets.VBox(
            [
                ipywidgets.HBox([self.part, self.title, self.add, self.remove], layout=row),
                self.formula,
                self.kind,
                self.body,
            ],
            layout=ipywidgets.Layout(flex="1 1 26rem", min_width="0"),
        )
        self.part.observe(lambda _: self._on(self._draw_part), names="value")
        self.kind.observe(lambda _: self._on(self._change_kind), names="value")
        self.formula.observe(lambda _: self._on(self._change_formula), names="value")
        self.title.observe(lambda _: self._on(self._rename), names="value")

    def show(self, spec: Spec) -> None:
        """Fill the fields from a spec; the same sub-grader stays selected."""
        if spec == self._spec:
            return
        self._spec = copy.deepcopy(spec)
        with self._quiet():
            keys = list(self._parts())
            chosen = self.part.value if self.part.value in keys else keys[0]
            self.part.options, self.part.value = keys, chosen
            self.formula.value = str(spec.get("calculate_output", ""))
            self.formula.layout.display = "" if self._is_multi() else "none"
            self.remove.disabled = len(keys) < 2
        self._draw_part()

    def mark(self, param: str) -> None:
        """Mark the control of the field that a problem is about, such as `graders.a.input`."""
        names = re.split(r"[.\[]", param.removeprefix(f"graders.{self.part.value}."))
        for name, control in self._fields.items():
            control.remove_class("rk-wrong")
            if name == names[0]:
                control.add_class("rk-wrong")

    def field(self, name: str) -> ipywidgets.Widget:
        """The control of one field of the selected grader."""
        return self._fields[name]

    def _draw_part(self) -> None:
        part = self._chosen()
        with self._quiet():
            if part.get("type") not in FIELDS:
                self.body.children = [
                    ipywidgets.HTML(f"There is no form for {part.get('type')!s}. Edit the JSON.")
                ]
                return
            self.kind.value = part["type"]
            self.title.value = str(self.part.value or "")
            self._fields = {}
            self.body.children = [self._row(name, part) for name in FIELDS[part["type"]]]

    def _row(self, name: str, part: Spec) -> ipywidgets.Widget:
        value, label = part.get(name), LABELS.get(name, name)
        if name == "criteria":
            form = CriteriaForm(value or [], lambda new: self._on(lambda: self._edit(name, new)))
            self._fields[name] = form.box
            return form.box
        options: dict[str, Any] = {"description": label, "layout": _wide()}
        if name in CHOICES:
            options["layout"] = _wide(max_width="24rem")
            control = ipywidgets.Dropdown(options=CHOICES[name], **options)
            control.value = value if value in CHOICES[name] else None
        elif name == "source" or not isinstance(value, str | type(None)):
            is_code = name == "source"
            shown = str(value) if is_code else json.dumps(value, indent=1, ensure_ascii=False)
            control = ipywidgets.Textarea(
                shown,
                rows=16 if is_code else 3 + shown.count("\n"),
                continuous_update=False,
                **options,
            )
            control.add_class("rk-code")
        else:
            control = ipywidgets.Text(value or "", continuous_update=False, **options)
        self._fields[name] = control
        control.observe(lambda change: self._on(lambda: self._edit(name, change["new"])), "value")
        if name in ("input", "reference") and isinstance(value, str):
            # beside the menu, or above it where the screen is narrow
            control.layout = _wide(width="auto", flex="1 1 14rem", min_width="0")
            row = _wide(flex_flow="row wrap")
            return ipywidgets.HBox([control, self._inserter()], layout=row)
        return control

    def _inserter(self) -> ipywidgets.HTML:
        """A menu that inserts a field of the row or of the answer at the cursor.

        It is markup, because only the browser knows the cursor and the selection: what it inserts
        replaces the selection, and the browser can undo it.
        """
        options = join(html("<option>{}</option>", name) for name in self.names)
        return ipywidgets.HTML(
            html(
                '<select class="rk-insert" aria-label="Insert a field of the row or of the '
                'answer" data-lm-suppress-shortcuts="true" onchange="{}">'
                '<option value="">insert …</option>{}</select>',
                _INSERT,
                options,
            ),
            layout=ipywidgets.Layout(width="9rem", flex="0 0 auto"),
        )

    def _edit(self, name: str, value: Any) -> None:
        before = self._chosen().get(name)
        if not isinstance(before, str | type(None)) and isinstance(value, str):
            try:
                value = parse_strictly(value)
            except ValueError as error:
                raise InputError(f"{name} is not valid JSON: {error}") from None
        if value == "" and name in OPTIONAL:
            value = None
        part = {**self._chosen(), name: value}
        self._put({key: each for key, each in part.items() if each is not None})

    def _rename(self) -> None:
        """Give the selected grader another name, in the formula too."""
        old, new = str(self.part.value), self.title.value.strip()
        if new == old or not new:
            return
        if not self._is_multi():
            self._take(self._spec | {"name": new}, new)
            return
        parts = self._parts()
        if not new.isidentifier() or new in parts:
            self.title.value = old
            why = "is taken" if new in parts else "may hold letters, digits and _ only"
            raise InputError(f"the name {new!r} {why}; the formula uses it")
        renamed = {new if key == old else key: part for key, part in parts.items()}
        if renamed[new].get("name") == old:
            renamed[new] = renamed[new] | {"name": new}
        formula = re.sub(rf"\b{re.escape(old)}\b", new, self._spec["calculate_output"])
        self._take(self._spec | {"graders": renamed, "calculate_output": formula}, new)

    def _change_kind(self) -> None:
        old = self._chosen()
        if self.kind.value == old.get("type"):
            return
        fresh = self._default(self.kind.value)
        kept = {
            key: old[key]
            for key in ("input", "reference")
            if isinstance(old.get(key), str) and isinstance(fresh.get(key), str)
        }
        self._put({**({"name": old["name"]} if "name" in old else {}), **fresh, **kept})
        self._draw_part()

    def _change_formula(self) -> None:
        self._spec["calculate_output"] = self.formula.value
        self._out()

    def _add(self) -> None:
        parts = self._parts()
        key = next(f"grader_{n}" for n in range(1, 99) if f"grader_{n}" not in parts)
        fresh = self._default("string_check")
        if self._is_multi():
            formula = f"{self._spec.get('calculate_output', '')} + 0 * {key}"
        else:
            first = re.sub(r"\W", "_", next(iter(parts))) or "first"
            parts = {first: {k: v for k, v in self._spec.items() if k != "name"}}
            formula = f"0.5 * {first} + 0.5 * {key}"
        self._take(
            {
                "type": "multi",
                "name": self._spec.get("name", "combined"),
                "graders": {**parts, key: fresh},
                "calculate_output": formula,
            },
            key,
        )

    def _remove(self) -> None:
        parts = {key: part for key, part in self._parts().items() if key != self.part.value}
        formula = self._spec["calculate_output"]
        if len(parts) == 1:
            formula = next(iter(parts))
        self._take(self._spec | {"graders": parts, "calculate_output": formula}, next(iter(parts)))

    def _take(self, spec: Spec, key: str) -> None:
        self.show(spec)
        self.part.value = key
        self._out()

    def _put(self, part: Spec) -> None:
        if self._is_multi():
            self._spec["graders"][self.part.value] = part
        else:
            self._spec = part
        self._out()

    def _out(self) -> None:
        self._edited(copy.deepcopy(self._spec))

    def _default(self, kind: str) -> Spec:
        item = next((name for name in self.names if name.startswith("item.")), "item.answer")
        pair = {"input": "{{sample.output_text}}", "reference": f"{{{{{item}}}}}"}
        ask = "Rate the answer from 0 to 1.\n\nExpected: {reference}\nAnswer: {input}".format(
            **pair
        )
        fields: dict[str, Spec] = {
            "string_check": {"operation": "eq", **pair},
            "text_similarity": {"evaluation_metric": "fuzzy_match", **pair},
            "python": {"source": SOURCE},
            "score_model": {
                "model": JUDGE,
                "input": [{"role": "user", "content": ask}],
                "range": [0, 1],
            },
            "rubric": {
                "model": JUDGE,
                "criteria": [{"text": "Answers the question", "required": True}],
                "input": _default_prompt(Rubric),
            },
            "relative": {"model": JUDGE, "input": _default_prompt(Relative)},
            "endpoint": {"url": "http://127.0.0.1:8000/grade"},
        }
        return {"type": kind, **fields[kind]}

    def _parts(self) -> dict[str, Spec]:
        if self._is_multi():
            parts: dict[str, Spec] = self._spec["graders"]
            return parts
        return {str(self._spec.get("name") or "grader"): self._spec}

    def _chosen(self) -> Spec:
        parts = self._parts()
        return parts.get(self.part.value) or next(iter(parts.values()))

    def _is_multi(self) -> bool:
        return self._spec.get("type") == "multi"

    def _on(self, action: Callable[[], None]) -> None:
        if not self._showing:
            self._guard(action)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Values that the form sets itself do not count as edits."""
        before, self._showing = self._showing, True
        try:
            yield
        finally:
            self._showing = before

    def _button(self, label: str, action: Callable[[], None], icon: str, tip: str) -> Any:
        button = ipywidgets.Button(
            description=label, icon=icon, tooltip=tip, layout=ipywidgets.Layout(width="auto")
        )
        button.on_click(lambda _: self._guard(action))
        return button


def _default_prompt(kind: type[Rubric | Relative]) -> list[Spec]:
    """The prompt that a type has where none is given, as JSON."""
    messages = kind.model_fields["input"].default
    return [{"role": each.role, "content": each.content} for each in messages]


def template_fields(
    items: Sequence[Mapping[str, Any]],
    response_format: Mapping[str, Any] | None,
    answers: Sequence[str | None] = (),
) -> list[str]:
    """The fields that a template may name: keys of the rows, and fields of the answers.

    Args:
        items: some rows.
        response_format: as in the job; its properties are the fields.
        answers: some answers; without a schema, the fields of those that are JSON objects are used.
    """
    rows = dict.fromkeys(
        str(path)
        for item in items
        for key, value in item.items()
        if key not in ("messages", "tools", REFUSED)
        for path in _paths("item", (key,), value)
    )
    schema = ((response_format or {}).get("json_schema") or {}).get("schema") or {}
    fields = dict.fromkeys(schema.get("properties") or ())
    if not fields:
        for answer in answers:
            fields |= dict.fromkeys(_object(answer))
    sampled = [str(Path("sample", ("output_json", field))) for field in fields]
    return [*rows, "sample.output_text", *sampled]


def _paths(namespace: str, steps: tuple[str | int, ...], value: Any) -> Iterator[Path]:
    yield Path(namespace, steps)
    if isinstance(value, Mapping) and len(steps) < 3:
        for key, inner in value.items():
            yield from _paths(namespace, (*steps, key), inner)


def _object(answer: str | None) -> dict[str, Any]:
    try:
        value = parse_json(answer or "")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _wide(**more: str) -> ipywidgets.Layout:
    return ipywidgets.Layout(**{**WIDE, **more})
