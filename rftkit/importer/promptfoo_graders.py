"""promptfoo's assertions and the graders that decide the same, in both directions. Pure.

Only assertions that compare texts have a counterpart. Those that run code of the config, such as
`javascript` and `python`, are never run or copied; those that a model grades have a prompt of
promptfoo's own. Of templates, only plain `{{name}}` is translated. Not here: files.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["LOADED", "MORE", "assertion_of", "grader_of", "item_template"]

Json = dict[str, Any]

CHECKS = {"equals": "eq", "not-equals": "ne", "contains": "like", "icontains": "ilike"}
"""Assertion -> operation of a string_check."""
SIMILARITIES = {
    "rouge-n": ("rouge_1", 0.75),
    "bleu": ("bleu", 0.5),
    "gleu": ("gleu", 0.5),
    "meteor": ("meteor", 0.5),
    "similar": ("cosine", 0.75),
}
"""Assertion -> metric of a text_similarity, and promptfoo's own threshold."""
PYTHON = {
    "regex": "re.search(value, text) is not None",
    "not-regex": "re.search(value, text) is None",
    "starts-with": "text.startswith(value)",
    "not-contains": "value not in text",
    "not-icontains": "value.casefold() not in text.casefold()",
    "contains-any": "any(each in text for each in value)",
    "contains-all": "all(each in text for each in value)",
    "icontains-any": "any(each.casefold() in text.casefold() for each in value)",
    "icontains-all": "all(each.casefold() in text.casefold() for each in value)",
}
"""Assertion -> what a python grader returns."""
SOURCE = """\
import re

def grade(sample, item):
    text = sample.get("output_text") or ""
    value = {value}
    return 1.0 if {claim} else 0.0
"""
MORE = "its results are kept, but there is no grader for it"
NAME = re.compile(r"\{\{-?\s*([A-Za-z_]\w*)\s*-?\}\}")
OURS = re.compile(r"\{\{\s*item\.([A-Za-z_]\w*)\s*\}\}")
OUTPUT = re.compile(r"\{\{\s*sample\.output_text\s*\}\}")
MAX_PATTERN = 2_000
LOADED = ("file://", "package:", "http://", "https://")
"""Beginnings of texts that promptfoo may take for the place of a file or a program."""


def item_template(text: str) -> str | None:
    """The template in our syntax; None if it uses more of Nunjucks than names."""
    if "{" in (rest := NAME.sub("", text)) and any(sign in rest for sign in ("{{", "{%", "{#")):
        return None
    return NAME.sub(r"{{item.\1}}", text)


def grader_of(name: str, assertion: Json, value: Any, field: str | None) -> Json | str:
    """The grader that is equivalent to an assertion, or why there is none.

    Args:
        name: Of the grader.
        assertion: Of the config: `type`, and `threshold` if it has one.
        value: What the answer is compared with, if it is the same for every row.
        field: The field of the item that holds it, if it is not.
    """
    kind = str(assertion.get("type"))
    if kind in PYTHON:
        return _python(name, kind, value, field)
    if kind not in CHECKS and kind not in SIMILARITIES:
        return f"assertion {kind!r} has no counterpart here; {MORE}"
    if field is None and not isinstance(value, str | int | float):
        return f"assertion {kind!r} compares with something that is no text; {MORE}"
    reference = f"{{{{item.{field}}}}}" if field else item_template(str(value))
    if reference is None:
        return f"the template {str(value)[:80]!r} of assertion {kind!r} is not translated; {MORE}"
    texts = {"name": name, "input": "{{sample.output_text}}", "reference": reference}
    if kind in CHECKS:
        return {"type": "string_check", "operation": CHECKS[kind], **texts}
    metric, threshold = SIMILARITIES[kind]
    given = assertion.get("threshold")
    passes = given if isinstance(given, int | float) and 0 <= given <= 1 else threshold
    return {
        "type": "text_similarity", "evaluation_metric": metric, "pass_threshold": passes, **texts
    }  # fmt: skip


def _python(name: str, kind: str, value: Any, field: str | None) -> Json | str:
    """A fixed program; of the config it has only texts, as literals."""
    if field is None:
        wants_list = "-a" in kind
        fits = isinstance(value, list) and all(isinstance(each, str) for each in value)
        if not (fits if wants_list else isinstance(value, str)):
            return f"assertion {kind!r} compares with something that is no text; {MORE}"
        if any("{{" in each or "{%" in each for each in (value if wants_list else [value])):
            return f"assertion {kind!r} compares with a template; {MORE}"
    if kind.endswith("regex") and field is None and (problem := _pattern_problem(value)):
        return f"assertion {kind!r}: {problem}; {MORE}"
    literal = f"item[{field!r}]" if field else repr(value)
    return {
        "type": "python",
        "name": name,
        "source": SOURCE.format(value=literal, claim=PYTHON[kind]),
        "pass_threshold": 1.0,
    }


def _pattern_problem(pattern: str) -> str | None:
    if len(pattern) > MAX_PATTERN:
        return f"its pattern has more than {MAX_PATTERN:,} characters"
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"Python does not read its pattern ({error})"
    return None


def assertion_of(grader: Json) -> Json | str:
    """The assertion that is equivalent to a grader, or why there is none."""
    kind, name = str(grader.get("type")), str(grader.get("name") or "grader")
    checks = {ours: theirs for theirs, ours in CHECKS.items()}
    metrics = {ours: (theirs, own) for theirs, (ours, own) in SIMILARITIES.items()}
    if kind not in ("string_check", "text_similarity"):
        return (
            f"grader {name!r} of type {kind} has no assertion without code or a prompt of its own"
        )
    given, reference = str(grader.get("input")), str(grader.get("reference"))
    if not OUTPUT.fullmatch(given.strip()):
        return f"grader {name!r} reads {given[:80]!r}, and an assertion reads the whole answer"
    rest = OURS.sub("", reference)
    if any(sign in rest for sign in ("{{", "{%", "{#")) or reference.startswith(LOADED):
        return f"grader {name!r} compares with {reference[:80]!r}, which is not plain fields"
    value = OURS.sub(r"{{ item.\1 }}", reference)
    if kind == "string_check":
        found: Json = {"type": checks.get(str(grader.get("operation")))}
    else:
        theirs, own = metrics.get(str(grader.get("evaluation_metric")), (None, None))
        given_threshold = grader.get("pass_threshold")
        found = {"type": theirs, "threshold": own if given_threshold is None else given_threshold}
    if found["type"] is None:
        return (
            f"grader {name!r}: promptfoo has no {grader.get('evaluation_metric') or 'such'} check"
        )
    return {**found, "value": value, "metric": name}
