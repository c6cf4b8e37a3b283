"""From one spec to one function: `COMPILERS[type](spec, param, context)` -> Score.

A new grader type is one function here and one model in `types`. What a Score needs from outside
(a judge, an embedding, HTTP, a cache) comes in the Context. Not here: multi graders and outcomes,
which are the engine's.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rftkit import settings
from rftkit.graders import judge
from rftkit.graders.calls import Calls
from rftkit.graders.comparison import comparison
from rftkit.graders.embeddings import EmbeddingCall
from rftkit.graders.endpoint import Endpoint
from rftkit.graders.judge import Usage
from rftkit.graders.outcome import Fault, Sample, Scored
from rftkit.graders.posting import HttpCall
from rftkit.graders.relative import RelativeJudge
from rftkit.graders.rubric import RubricJudge
from rftkit.graders.sandbox import Limits, Sandbox
from rftkit.graders.source import check_source, executes_answers
from rftkit.graders.template import Path, compile_template, paths
from rftkit.graders.types import SPECS, Purpose, spec_type
from rftkit.safetext import redacted

__all__ = ["COMPILERS", "Context", "Score", "leaf_paths", "num_threads"]

Score = Callable[[Sample, Any, Usage], float | Scored]
"""A compiled spec: (sample, item, usage) -> reward, or a Fault. Judges add to `usage`."""

EMBEDDING_MODEL = "text-embedding-3-large"


@dataclass(frozen=True, slots=True)
class Context:
    """What compile functions get in addition to the spec."""

    purpose: Purpose = "rft"
    workers: int = 2
    """Processes of each python grader."""
    limits: Limits = field(default_factory=Limits)
    unconfined: bool = False
    """Run python graders without isolation."""
    complete: judge.CompletionCall | None = None
    embed: EmbeddingCall | None = None
    http: HttpCall | None = None
    cache: MutableMapping[str, str] | None = None
    """Answers of judges."""
    concurrency: int = 8
    """Calls of judges and endpoints at once."""
    calls: Calls = field(default_factory=Calls)
    """Runs the calls of judges and endpoints, at most `concurrency` at once."""
    closers: list[Callable[..., None]] = field(default_factory=list)
    """What to call, with `now`, when the grader is closed."""
    comparing: list[RelativeJudge] = field(default_factory=list)
    """The judges that compare whole groups, in the order of their leaves."""


def num_threads(kind: str, context: Context) -> int:
    """How many grades of one leaf may usefully run at once."""
    if kind == "python":
        return context.workers
    return context.concurrency if SPECS[kind].calls_out else 1


def leaf_paths(spec: Mapping[str, Any], param: str) -> list[Path]:
    """The template paths of one normalised leaf."""
    return [
        path
        for name in spec_type(spec).templates
        for text in _texts(None if _are_criteria(spec.get(name)) else spec.get(name))
        for path in paths(text, param=_at(param, name))
    ]


def _string_check(spec: dict[str, Any], param: str, context: Context) -> Score:
    left = compile_template(spec["input"], param=_at(param, "input"))
    right = compile_template(spec["reference"], param=_at(param, "reference"))
    match spec["operation"]:
        case "eq":
            return lambda sample, item, _: 1.0 if left(sample, item) == right(sample, item) else 0.0
        case "ne":
            return lambda sample, item, _: 1.0 if left(sample, item) != right(sample, item) else 0.0
        case "like":
            return lambda sample, item, _: 1.0 if right(sample, item) in left(sample, item) else 0.0
    return lambda sample, item, _: float(
        right(sample, item).casefold() in left(sample, item).casefold()
    )


def _text_similarity(spec: dict[str, Any], param: str, context: Context) -> Score:
    left = compile_template(spec["input"], param=_at(param, "input"))
    right = compile_template(spec["reference"], param=_at(param, "reference"))
    if spec["evaluation_metric"] == "cosine":
        return _cosine(left, right, context)
    compare = comparison(spec["evaluation_metric"], context.calls)
    return lambda sample, item, _: compare(left(sample, item), right(sample, item))


def _cosine(left: Any, right: Any, context: Context) -> Score:
    """Cosine of the embeddings; below 0 counts as 0, so that the result is on 0..1."""

    def cosine(sample: Sample, item: Any, usage: Usage) -> float:
        texts = [left(sample, item), right(sample, item)]
        if not all(texts):  # nothing to embed
            return float(texts[0] == texts[1])
        if context.embed is None:
            raise Fault("model_grader_server_error", "cosine needs embed= in compile_grader")
        try:
            call = functools.partial(context.embed, EMBEDDING_MODEL, texts)
            one, other = context.calls.run(call, judge.TIMEOUT_SECONDS)
        except Exception as error:
            said = redacted(f"{type(error).__name__}: {error}", settings.keys())
            raise Fault("model_grader_server_error", said) from error
        product: float = sum(map(operator.mul, one, other))
        return max(0.0, product / (math.hypot(*one) * math.hypot(*other)))

    return cosine


def _python(spec: dict[str, Any], param: str, context: Context) -> Score:
    check_source(spec["source"], param=_at(param, "source"))
    isolation = spec.get("isolation")
    sandbox = Sandbox(
        spec["source"],
        workers=context.workers,
        limits=context.limits,
        unconfined=context.unconfined,
        per_grade=isolation == "per_grade" if isolation else executes_answers(spec["source"]),
    )
    context.closers.append(sandbox.close)
    return lambda sample, item, _: sandbox.grade(sample.to_dict(), item)


def _score_model(spec: dict[str, Any], param: str, context: Context) -> Score:
    low, high = spec.get("range", (0.0, 1.0))
    result = {"type": "number", "description": f"The score, from {low:g} to {high:g} inclusive."}
    schema = judge.schema(result, "float_score_classification")
    read = functools.partial(judge.read_score, low=low, high=high)
    return _answered(_judge(spec, param, context), schema, read)


def _label_model(spec: dict[str, Any], param: str, context: Context) -> Score:
    labels, passing = spec["labels"], spec["passing_labels"]
    result = {"type": "string", "enum": labels, "description": "The label that fits best."}
    schema = judge.schema(result, "label_classification")
    read = functools.partial(judge.read_label, labels=labels, passing=passing)
    return _answered(_judge(spec, param, context), schema, read)


def _rubric(spec: dict[str, Any], param: str, context: Context) -> Score:
    asked = _judge(spec, param, context)
    return RubricJudge(asked, spec["criteria"], param=_at(param, "criteria")).grade


def _relative(spec: dict[str, Any], param: str, context: Context) -> Score:
    asked = _judge(spec, param, context)
    found = RelativeJudge(asked, spec.get("instructions"), spec.get("anchor"), param=param)
    context.comparing.append(found)
    return found.grade


def _answered(asked: judge.Judge, schema: dict[str, Any], read: Callable[[Any], float]) -> Score:
    return lambda sample, item, usage: asked.ask(asked.messages(sample, item), schema, read, usage)


def _judge(spec: dict[str, Any], param: str, context: Context) -> judge.Judge:
    return judge.Judge(
        spec,
        param=_at(param, "input"),
        complete=context.complete,
        cache=context.cache,
        calls=context.calls,
    )


def _endpoint(spec: dict[str, Any], param: str, context: Context) -> Score:
    endpoint = Endpoint(spec, context.http, context.calls)
    return lambda sample, item, _: endpoint.grade(sample, item)


class _Compiler(Protocol):
    def __call__(self, spec: dict[str, Any], param: str, context: Context, /) -> Score: ...


COMPILERS: dict[str, _Compiler] = {
    "string_check": _string_check,
    "text_similarity": _text_similarity,
    "python": _python,
    "score_model": _score_model,
    "label_model": _label_model,
    "rubric": _rubric,
    "relative": _relative,
    "endpoint": _endpoint,
}


def _are_criteria(value: Any) -> bool:
    """Whether a value is a rubric's list of criteria. These hold no templates; a template names a
    row's own criteria.
    """
    return isinstance(value, list) and not any("content" in each for each in value)


def _texts(value: Any) -> list[str]:
    """Every text inside a template field, which for judges is a list of messages."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = [value[key] for key in value if key not in ("role", "type", "detail", "format")]
    return [text for inner in value or [] for text in _texts(inner)]


def _at(param: str, field: str) -> str:
    return f"{param}.{field}" if param else field
