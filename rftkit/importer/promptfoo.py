"""promptfoo's results (`promptfoo eval -o results.json`) and configs as evals of the API.

Results hold the config, every test and every answer, so that they give rows, graders and runs: one
run for each provider and prompt. A config alone gives rows and graders. A value that is the same in
every test goes into the grader, one that differs into a field of the row. An assertion that only
some tests have becomes no grader, because a grader reads every row. Nothing that a config names is
loaded or run: `file://`, `javascript` and `python` are named instead. Not here: writing
(`leaving`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rftkit.importer.foreign import (
    Answer,
    ForeignEval,
    ForeignRun,
    Result,
    number_of,
    seconds_of,
)
from rftkit.importer.promptfoo_graders import MORE, grader_of
from rftkit.jsontext import parse_json
from rftkit.yamltext import parse_yaml

__all__ = ["eval_of_config", "eval_of_results", "is_config", "is_results", "read_config"]

Json = dict[str, Any]

ERROR = 2
"""`failureReason` of a result without an answer; 1 is a failed assertion."""
MAX_CONFIG_BYTES = 10 << 20
FINISH = {"stop", "length", "content_filter", "tool_calls"}


@dataclass(slots=True)
class _Slot:
    """One assertion in all tests: `values` by test."""

    name: str
    assertion: Json
    values: dict[int, Any] = field(default_factory=dict)


def is_results(value: Any) -> bool:
    """Whether a JSON document is what promptfoo writes."""
    results = value.get("results") if isinstance(value, dict) else None
    return isinstance(results, dict) and isinstance(results.get("results"), list)


def is_config(value: Any) -> bool:
    """Whether a YAML or JSON document is a promptfoo config."""
    return (
        isinstance(value, dict)
        and "prompts" in value
        and bool({"tests", "providers"} & value.keys())
    )


def read_config(path: Path) -> Any:
    """The document in a YAML file, its dates as texts.

    Raises:
        ValueError: it is no YAML of plain values, or too large.
    """
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"it is larger than {MAX_CONFIG_BYTES >> 20} MB")
    found = parse_yaml(path.read_text(encoding="utf-8"))
    return parse_json(json.dumps(found, default=str, skipkeys=True))


def eval_of_results(value: Json, name: str) -> ForeignEval:
    """The eval in a results document."""
    results = [each for each in value["results"]["results"] if isinstance(each, dict)]
    config = _map(value.get("config"))
    unfit: list[str] = []
    tests = {_int(each.get("testIdx"), n): each for n, each in enumerate(results)}
    slots = _slots({idx: list(_components(each)) for idx, each in tests.items()})
    graders, fields = _graders(slots, tests.keys(), unfit)
    runs: dict[tuple[str, int], list[Answer]] = {}
    for n, each in enumerate(results):
        test = _int(each.get("testIdx"), n)
        item = _row(_messages(each), _map(each.get("vars")), fields, test, unfit)
        model = str(_map(each.get("provider")).get("id") or each.get("provider") or "unknown")
        runs.setdefault((model, _int(each.get("promptIdx"), 0)), []).append(
            _answer(each, item, model)
        )
    answers = [answer for found in runs.values() for answer in found]
    several = len({prompt for _, prompt in runs}) > 1
    return ForeignEval(
        name=str(config.get("description") or name),
        tool="promptfoo",
        created_at=seconds_of(value["results"].get("timestamp")),
        graders=graders,
        rows=_distinct(answer.item for answer in answers),
        runs=[
            ForeignRun(f"{model}, prompt {prompt + 1}" if several else model, model, found)
            for (model, prompt), found in runs.items()
        ],
        unfit=unfit,
    )


def eval_of_config(value: Json, name: str) -> ForeignEval:
    """The eval in a config without results: rows and graders."""
    unfit: list[str] = []
    default = _map(value.get("defaultTest"))
    tests = _plain(value.get("tests"), "tests", unfit)
    prompts = [
        text for each in _plain(value.get("prompts"), "prompts", unfit)
        if (text := _prompt_text(each, unfit))
    ]  # fmt: skip
    given = {n: _map(each) for n, each in enumerate(tests)}
    asserts = {
        n: [(each, each.get("value")) for each in
            [*_asserts(default), *_asserts(test)] if isinstance(each, dict)]
        for n, test in given.items()
    }  # fmt: skip
    graders, fields = _graders(_slots(asserts), given.keys(), unfit)
    rows = []
    for n, test in given.items():
        variables = {**_map(default.get("vars")), **_map(test.get("vars"))}
        for prompt in prompts:
            messages = _messages({"prompt": {"raw": _filled(prompt, variables)}})
            rows.append(_row(messages, variables, fields, n, unfit))
    unfit.append("a config without its results has no answers; promptfoo eval -o results.json")
    return ForeignEval(
        str(value.get("description") or name), "promptfoo", 0, graders, _distinct(rows), [], unfit
    )


# -- graders ---------------------------------------------------------------------------------------


def _slots(asserts: Mapping[int, Sequence[tuple[Json, Any]]]) -> list[_Slot]:
    """Assertions, grouped by type, metric, and number among those of the same kind."""
    found: dict[str, _Slot] = {}
    for test, pairs in asserts.items():
        seen: dict[str, int] = {}
        for assertion, value in pairs:
            base = str(assertion.get("metric") or assertion.get("type") or "promptfoo")[:80]
            seen[base] = seen.get(base, 0) + 1
            name = base if seen[base] == 1 else f"{base}_{seen[base]}"
            found.setdefault(name, _Slot(name, assertion)).values[test] = value
    return list(found.values())


def _graders(
    slots: Sequence[_Slot], tests: Any, unfit: list[str]
) -> tuple[list[Json], dict[str, dict[int, Any]]]:
    """Graders, and the fields that rows need for them: field -> value by test."""
    graders: list[Json] = []
    fields: dict[str, dict[int, Any]] = {}
    for slot in slots:
        values = list(slot.values.values())
        is_same = all(each == values[0] for each in values)
        if len(values) < len(tests):
            unfit.append(
                f"assertion {slot.name!r} is in {len(values):,} of {len(tests):,} tests; {MORE}"
            )
            continue
        name = None if is_same else f"expected_{re.sub(r'[^A-Za-z0-9_]', '_', slot.name)}"
        if name and any(not _is_text_or_texts(each) for each in values):
            unfit.append(f"assertion {slot.name!r} compares with something that is no text; {MORE}")
            continue
        made = grader_of(slot.name, slot.assertion, values[0], name)
        if isinstance(made, str):
            unfit.append(made)
        else:
            graders.append(made)
            if name:
                fields[name] = slot.values
    return graders, fields


def _is_text_or_texts(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(each, str | int | float) and "{{" not in str(each) for each in texts)


def _components(result: Json) -> Iterator[tuple[Json, Any]]:
    """Assertions of a result, each with the value as promptfoo rendered it."""
    for each in _map(result.get("gradingResult")).get("componentResults") or []:
        assertion = _map(_map(each).get("assertion"))
        if assertion:
            value = assertion.get("value")
            rendered = _map(each.get("metadata")).get("renderedAssertionValue")
            yield assertion, rendered if _has_more_than_names(value) and rendered else value


def _has_more_than_names(value: Any) -> bool:
    return isinstance(value, str) and ("{%" in value or ("|" in value and "{{" in value))


# -- rows and answers ------------------------------------------------------------------------------


def _row(
    messages: list[Json], variables: Json, fields: Mapping[str, Mapping[int, Any]], test: int,
    unfit: list[str],
) -> Json:  # fmt: skip
    row: Json = {"messages": messages}
    for name, value in variables.items():
        if name in row or name.startswith("_"):
            unfit.append(f"variable {name!r} has a name that rows use; it is left out")
        else:
            row[name] = value
    return row | {name: values[test] for name, values in fields.items() if test in values}


def _messages(result: Json) -> list[Json]:
    """The prompt as messages: promptfoo's prompts may be a JSON list of them."""
    raw = _map(result.get("prompt")).get("raw")
    text = raw if isinstance(raw, str) else json.dumps(raw)
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    if isinstance(found, list) and found and all(map(_is_message, found)):
        return [{"role": each["role"], "content": each["content"]} for each in found]
    return [{"role": "user", "content": text}]


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("role") in ("system", "developer", "user", "assistant")
        and isinstance(value.get("content"), str)
    )


def _answer(result: Json, item: Json, model: str) -> Answer:
    response = _map(result.get("response"))
    output, failed = response.get("output"), result.get("failureReason") == ERROR
    text = output if output is None or isinstance(output, str) else json.dumps(output)
    error = result.get("error") or response.get("error")
    usage = _map(response.get("tokenUsage"))
    counts = {
        "prompt_tokens": usage.get("prompt"), "completion_tokens": usage.get("completion"),
        "total_tokens": usage.get("total"),
    }  # fmt: skip
    reason = response.get("finishReason")
    return Answer(
        item=item,
        text=None if failed else text,
        results=[] if failed or text is None else list(_results(result)),
        model=model,
        finish_reason=reason if reason in FINISH else "stop" if text is not None else None,
        usage={name: n for name, n in counts.items() if isinstance(n, int)} or None,
        error=str(error or "no answer")[:2000] if failed or text is None else None,
    )


def _results(result: Json) -> Iterator[Result]:
    """The result of each assertion; the whole result if promptfoo kept no parts."""
    grading = _map(result.get("gradingResult"))
    parts = [_map(each) for each in grading.get("componentResults") or []]
    seen: dict[str, int] = {}
    for part in parts or [grading]:
        assertion = _map(part.get("assertion"))
        base = str(assertion.get("metric") or assertion.get("type") or "promptfoo")[:80]
        seen[base] = seen.get(base, 0) + 1
        score = number_of(part.get("score"))
        if score is not None:
            name = base if seen[base] == 1 else f"{base}_{seen[base]}"
            yield Result(name, score, part.get("pass") is True)


# -- configs ---------------------------------------------------------------------------------------


def _plain(value: Any, what: str, unfit: list[str]) -> list[Any]:
    """The entries of a list that are written in the config; files and programs are named."""
    entries = value if isinstance(value, list) else [] if value is None else [value]
    places = [each for each in entries if isinstance(each, str) and each.startswith("file://")]
    if what == "tests" and isinstance(value, str):
        places = [value]
    for place in places[:20]:
        unfit.append(f"{what} in {place[:200]}: files that a config names are not read")
    return [each for each in entries if each not in places]


def _asserts(test: Json) -> list[Any]:
    found = test.get("assert")
    return found if isinstance(found, list) else []


def _prompt_text(value: Any, unfit: list[str]) -> str | None:
    text = value.get("raw") or value.get("id") if isinstance(value, dict) else value
    if isinstance(text, str) and not text.startswith("file://"):
        return text
    unfit.append(f"prompt {str(value)[:100]!r} is not written in the config")
    return None


def _filled(prompt: str, variables: Json) -> str:
    """A prompt with its plain `{{name}}` filled in; other Nunjucks syntax stays as it is."""

    def value(match: re.Match[str]) -> str:
        found = variables.get(match.group(1), match.group(0))
        return found if isinstance(found, str) else json.dumps(found)

    return re.sub(r"\{\{-?\s*([A-Za-z_]\w*)\s*-?\}\}", value, prompt)


def _distinct(rows: Any) -> list[Json]:
    return list({json.dumps(row, sort_keys=True): row for row in rows}.values())


def _map(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _int(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default
