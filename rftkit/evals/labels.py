"""Labels of people in files: those of the panel `Labeller`, and answers that carry their own label.

A line of `Labeller` names a sample of a run: `{"row", "run", "sample", "value", "kind", "by"}`. A
line of the other form has all that is needed: `{"item": {…}, "sample": "the answer", "label": …}`,
where the label is accept, reject, true, false, or a number on the reward's scale. Not here: what
the labels show about a grader (`agreement`, `calibration`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from rftkit.errors import InputError
from rftkit.evals.agreement import Label
from rftkit.evals.answers import Answer
from rftkit.evals.local_runs import ungraded_run
from rftkit.evals.samples import Samples, row_key
from rftkit.graders import given_sample
from rftkit.rows import Row, objects_in
from rftkit.strictjson import read_text
from rftkit.wording import first_problem

__all__ = ["as_grades", "has_answers", "labelled_answers", "read_labels"]

RUN = "labelled answers"
"""Label of the run that a file of labelled answers becomes."""
WORDS = {"accept": 1.0, "reject": 0.0, "pass": 1.0, "fail": 0.0, "true": 1.0, "false": 0.0}

Kind = Literal["verdict", "number"]
_LABEL = TypeAdapter(Label)


def read_labels(path: str | Path) -> list[Label]:
    """Read the labels of a file; empty if the file does not exist.

    Raises:
        InputError: a line is not a label.
    """
    file, found = Path(path), []
    for number_, value in objects_in(read_text(file), path) if file.is_file() else ():
        try:
            found.append(_LABEL.validate_json(json.dumps(value)))
        except ValidationError as error:
            raise InputError(f"{path}:{number_}: not a label: {first_problem(error)}") from None
    return found


def has_answers(path: str | Path) -> bool:
    """Whether the lines of a file carry their answers; False for labels of `Labeller`.

    Raises:
        InputError: the file has no line, or its first one is of neither form.
    """
    for number, value in _objects(path):
        if "label" in value:
            return True
        if {"row", "run", "sample", "value"} <= set(value):
            return False
        raise InputError(
            f"{path}:{number}: expected a label: an object with `item`, `sample` and `label`, or a "
            f"line that the panel Labeller wrote; found {', '.join(map(repr, value)) or 'no keys'}"
        )
    raise InputError(f"{path} has no labels")


def labelled_answers(
    path: str | Path, response_format: Mapping[str, Any] | None = None
) -> tuple[Samples, list[Label]]:
    """Read answers with their labels; the samples have no grades yet.

    Raises:
        InputError: a line is none of these, with file and line; or labels are of two kinds.
    """
    rows, answers, labels = [], [], []
    seen: dict[tuple[str, str], int] = {}
    counts: dict[str, int] = {}
    for number, value in _objects(path):
        where = f"{path}:{number}"
        item, (label, kind) = _item(value, where), _label(value.get("label"), where)
        try:
            sample = given_sample(value.get("sample"), response_format=response_format)
        except InputError as error:
            raise InputError(f"{where}: {error.message}") from None
        key = row_key(item)
        if (place := seen.get((key, sample.output_text))) is None:
            place = seen[key, sample.output_text] = counts.get(key, 0)
            counts[key] = place + 1
            rows.append(Row(item=item, line=number))
            answers.append(Answer(RUN, sample))
        by = str(value.get("by") or "")
        labels.append(Label(key, RUN, place, label, kind, by))
    if not labels:
        raise InputError(f"{path} has no labels")
    return ungraded_run(rows, answers, name=RUN, response_format=response_format), labels


def as_grades(samples: Samples, labels: Iterable[Label]) -> Samples:
    """The same samples with people's labels as rewards; samples without a label have none.

    `evals.drift(samples, events, watch=as_grades(samples, labels), watch_name="people")` then tells
    at which validation the reward left what people say.
    """
    means: dict[tuple[str, str, int], list[float]] = {}
    for each in labels:
        means.setdefault((each.row, each.run, each.sample), []).append(each.value)
    frame = samples.frame.copy()
    places = zip(frame["row"], frame["run"], frame["sample"], strict=True)
    given = [means.get(place) for place in places]
    frame["reward"] = [sum(each) / len(each) if each else float("nan") for each in given]
    frame["outcome"] = ["graded" if each else "failed" for each in given]
    return replace(samples, frame=frame)


def _objects(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    file = Path(path)
    if not file.is_file():
        raise InputError(f"there is no file {file}")
    yield from objects_in(read_text(file), path)


def _item(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    item = value.get("item")
    if not isinstance(item, dict):
        raise InputError(f"{where}: expected `item`, the dataset row of the answer, as an object")
    return item


def _label(given: Any, where: str) -> tuple[float, Kind]:
    """A verdict or a number."""
    if isinstance(given, bool):
        return float(given), "verdict"
    if isinstance(given, int | float):
        return float(given), "number"
    if isinstance(given, str) and given.strip().lower() in WORDS:
        return WORDS[given.strip().lower()], "verdict"
    raise InputError(
        f"{where}: `label` must be accept, reject, true, false or a number, found {given!r}"
    )
