"""Grader specs, one model per wire type, and the check that gives every other error its words.

Specs travel as plain dicts in the wire's own form; `parse` checks one and returns it normalised.
Not here: whether templates, formulas and sources make sense (see `engine`). The SDK types
`multi.graders` as one grader; the service wants a map, so a list or a single grader is refused.
Unknown fields are refused by name, because a mistyped option would otherwise be ignored silently.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from rftkit.errors import GraderSpecError

__all__ = [
    "SPECS",
    "Endpoint",
    "LabelModel",
    "Message",
    "Multi",
    "Purpose",
    "Python",
    "ScoreModel",
    "StringCheck",
    "TextSimilarity",
    "parse",
]

Purpose = Literal["rft", "eval"]
"""`rft` covers jobs and graders/run; `eval` the criteria of an eval."""

IMAGE_TAG = "2025-05-08"
_ECHOED = ("id", "grdr_id", "inactive_at", "object")
_MAX_SOURCE_BYTES = 256_000


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Named(_Spec):
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Shown in results; filled in when missing."""
    pass_threshold: float | None = None
    """Score from which an eval counts an answer as passed; it never changes a reward."""


class StringCheck(_Named):
    """1 or 0 by comparing two templates; nothing is trimmed."""

    type: Literal["string_check"]
    operation: Literal["eq", "ne", "like", "ilike"]
    """`like`: input contains reference; `ilike`: the same, ignoring case."""
    input: str
    """Template."""
    reference: str
    """Template."""


class TextSimilarity(_Named):
    """How alike two templates are, 0 to 1."""

    type: Literal["text_similarity"]
    evaluation_metric: Literal[
        "cosine",
        "fuzzy_match",
        "bleu",
        "gleu",
        "meteor",
        "rouge_1",
        "rouge_2",
        "rouge_3",
        "rouge_4",
        "rouge_5",
        "rouge_l",
    ]
    """See `similarity`; `cosine` only in evals."""
    input: str
    """Template; the candidate of metrics that are not symmetric."""
    reference: str
    """Template."""


class Python(_Named):
    """A function `grade(sample, item)` run in the sandbox."""

    type: Literal["python"]
    source: str
    """Python source, under 256 kB."""
    image_tag: str | None = None
    """Name of the hosted image; echoed, without effect here."""


class InputText(_Spec):
    """Text of a message."""

    type: Literal["input_text", "output_text"]
    text: str


class InputImage(_Spec):
    """An image for judges that see."""

    type: Literal["input_image"]
    image_url: str
    detail: str | None = None
    file_id: None = None


class InputAudio(_Spec):
    """Audio for judges that hear: `{data, format}`."""

    type: Literal["input_audio"]
    input_audio: dict[str, str]


Part = Annotated[InputText | InputImage | InputAudio, Field(discriminator="type")]


class Message(_Spec):
    """One message of a judge's prompt; its texts are templates."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | Part | list[str | Part]
    type: Literal["message"] | None = None


class SamplingParams(_Spec):
    """How a judge samples; unset ones are the judge's own defaults."""

    seed: int | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens; the wire spells it with this plural."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )


class _Judge(_Named):
    model: Annotated[str, Field(min_length=1)]
    """The judge."""
    input: Annotated[list[Message], Field(min_length=1)]
    """Its prompt."""
    sampling_params: SamplingParams | None = None


class ScoreModel(_Judge):
    """A model gives a number, clipped into `range`."""

    type: Literal["score_model"]
    range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """[low, high], default [0, 1]."""


class LabelModel(_Judge):
    """A model picks a label; 1 when it is among the passing ones. Evals only."""

    type: Literal["label_model"]
    labels: Annotated[list[str], Field(min_length=1)]
    passing_labels: list[str]


class Endpoint(_Named):
    """An HTTP grader of the user's: `{sample, item, trace_id}` in, `{"score": float}` out."""

    type: Literal["endpoint"]
    url: Annotated[str, Field(pattern=r"^https?://[^\s/]+")]
    headers: dict[str, str] | None = None
    """Sent with each call; masked when echoed."""
    rate_limit: Annotated[float, Field(gt=0)] | None = None
    """Most requests a second."""


class Multi(_Named):
    """Several graders, combined by a formula over their keys."""

    type: Literal["multi"]
    graders: dict[str, JsonValue]
    """Key -> grader; the keys are the formula's variables."""
    calculate_output: str
    """See `formula`."""


SPECS: dict[str, type[_Named]] = {
    "string_check": StringCheck,
    "text_similarity": TextSimilarity,
    "python": Python,
    "score_model": ScoreModel,
    "label_model": LabelModel,
    "endpoint": Endpoint,
    "multi": Multi,
}


def parse(spec: Any, *, purpose: Purpose = "rft", param: str = "") -> dict[str, Any]:
    """Check the shape of a spec and return it normalised: name and `image_tag` filled in.

    Args:
        spec: a grader as it is sent.
        purpose: `eval` allows `cosine` and `label_model`, which jobs refuse.
        param: where the spec stands in the request, put before every field name.

    Raises:
        GraderSpecError: `param` names the field.
    """
    kind = _kind(spec, param)
    _check_purpose(spec, kind, purpose, param)
    given = {key: value for key, value in spec.items() if key not in _ECHOED}
    if kind == "multi":
        given["graders"] = _parse_map(spec.get("graders"), purpose, _at(param, "graders"))
    model = _validate(SPECS[kind], given, param)
    _check_values(model, param)
    parsed = model.model_dump(exclude_none=True)
    parsed.setdefault("name", _name(parsed))
    if kind == "python":
        parsed.setdefault("image_tag", IMAGE_TAG)
    return {"type": kind, "name": parsed.pop("name")} | parsed


def _kind(spec: Any, param: str) -> str:
    where = f"`{param}`" if param else "a grader"
    if not isinstance(spec, Mapping):
        raise GraderSpecError(
            f"{where} must be an object with a `type`, found {_brief(spec)}", param=param or None
        )
    kind = spec.get("type")
    if not isinstance(kind, str) or kind not in SPECS:
        raise GraderSpecError(
            f"`{_at(param, 'type')}` must be one of {', '.join(SPECS)}, found {_brief(kind)}",
            param=_at(param, "type"),
        )
    return kind


def _check_purpose(spec: Mapping[str, Any], kind: str, purpose: Purpose, param: str) -> None:
    if kind == "multi" and param:
        raise GraderSpecError(
            f"`{param}` is a multi grader inside a multi grader; put its graders into the outer "
            "map and its formula into the outer `calculate_output`",
            param=param,
        )
    if purpose == "eval":
        return
    if kind == "label_model":
        raise GraderSpecError(
            "label_model works in evals only; use score_model here", param=_at(param, "type")
        )
    if kind == "text_similarity" and spec.get("evaluation_metric") == "cosine":
        raise GraderSpecError(
            "cosine works in evals only; use fuzzy_match, rouge_l or a score_model here",
            param=_at(param, "evaluation_metric"),
        )


def _parse_map(graders: Any, purpose: Purpose, param: str) -> dict[str, Any]:
    from rftkit.graders.formula import check_key

    if not isinstance(graders, Mapping) or isinstance(graders.get("type"), str):
        raise GraderSpecError(
            f"`{param}` must be a map from a key to a grader, such as "
            '{"format": {"type": "string_check", …}, "content": {…}}, with the keys as variables '
            f"of `calculate_output`; found {_brief(graders)}",
            param=param,
        )
    if not graders:
        raise GraderSpecError(f"`{param}` is empty; it needs at least one grader", param=param)
    parsed = {}
    for key, spec in graders.items():
        check_key(str(key), param=param)
        where = _at(param, str(key))
        parsed[key] = parse(
            {"name": key} | dict(spec) if isinstance(spec, Mapping) else spec,
            purpose=purpose,
            param=where,
        )
    return parsed


def _validate(model: type[_Named], given: dict[str, Any], param: str) -> _Named:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = _at(param, _spell(first["loc"]))
        raise GraderSpecError(_reword(first, where, model), param=where) from None
    except RecursionError:
        raise GraderSpecError("the grader is nested too deeply", param=param or None) from None


def _check_values(model: _Named, param: str) -> None:
    """What a type cannot say."""
    if isinstance(model, Python):
        size = len(model.source.encode("utf-8", "surrogatepass"))
        if size >= _MAX_SOURCE_BYTES:
            raise GraderSpecError(
                f"the source has {size} bytes; it must stay under {_MAX_SOURCE_BYTES}",
                param=_at(param, "source"),
            )
    if isinstance(model, ScoreModel) and model.range and not model.range[0] < model.range[1]:
        raise GraderSpecError(
            f"`range` must be [low, high] with low < high, found {model.range}",
            param=_at(param, "range"),
        )
    if isinstance(model, LabelModel):
        unknown = [label for label in model.passing_labels if label not in model.labels]
        if unknown:
            raise GraderSpecError(
                f"passing label {unknown[0]!r} is not among the labels {model.labels}",
                param=_at(param, "passing_labels"),
            )


def _name(parsed: dict[str, Any]) -> str:
    """The same grader gets the same name, so that two runs can be compared."""
    text = json.dumps(parsed, sort_keys=True, default=str)
    return "grader-" + hashlib.sha256(text.encode()).hexdigest()[:12]


def _reword(error: Any, where: str, model: type[_Named]) -> str:
    kind, found = error["type"], _brief(error["input"])
    if kind == "missing":
        return f"`{where}` is missing"
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), model.model_fields, n=1)
        return f"`{where}` is not a field of this grader" + (
            f"; did you mean `{near[0]}`?" if near else f" ({', '.join(model.model_fields)})"
        )
    return f"`{where}`: {error['msg'][:1].lower()}{error['msg'][1:]}, found {found}"


def _spell(location: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)[1:]


def _at(param: str, field: str) -> str:
    return f"{param}.{field}" if param and field else param or field


def _brief(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        text = json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:79] + "…"
