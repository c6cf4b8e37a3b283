"""Check the shape of a grader spec, in words that name the field, and return it normalised.

The SDK types `multi.graders` as one grader; the service wants a map, so a list or a single grader
is refused with the form to use. Not here: whether templates, formulas and sources make sense,
which compiling finds (`leaves`, `formula`).
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from rftkit.errors import GraderSpecError, InputError
from rftkit.graders.formula import check_key
from rftkit.graders.hosts import OF_MACHINE, is_of_machine
from rftkit.graders.posting import header_problem
from rftkit.graders.rubric import read_criteria
from rftkit.graders.template import lone_path, paths
from rftkit.graders.types import (
    MAX_GRADERS,
    SPECS,
    Endpoint,
    LabelModel,
    Message,
    Named,
    Purpose,
    Python,
    Relative,
    SamplingParams,
    ScoreModel,
)
from rftkit.wording import cut

__all__ = ["parse"]

IMAGE_TAG = "2025-05-08"
_ECHOED = ("id", "grdr_id", "inactive_at", "object")
_MAX_SOURCE_BYTES = 256_000


def parse(spec: Any, *, purpose: Purpose = "rft", param: str = "") -> dict[str, Any]:
    """Check the shape of a spec and return it normalised: name and `image_tag` filled in.

    Args:
        spec: a grader as it is sent.
        purpose: `eval` allows `label_model`, which jobs refuse.
        param: where the spec is in the request, put before every field name.

    Raises:
        GraderSpecError: `param` names the field.
    """
    kind = _kind(spec, param)
    _check_purpose(spec, kind, purpose, param)
    given = {key: value for key, value in spec.items() if key not in _ECHOED}
    if kind == "multi":
        given["graders"] = _parse_map(spec.get("graders"), purpose, _at(param, "graders"))
    given = _respelled(given)
    model = _validate(SPECS[kind], given, param)
    _check_values(model, param)
    parsed = model.model_dump(exclude_none=True)
    if kind == "rubric":
        parsed["criteria"] = _criteria(parsed["criteria"], _at(param, "criteria"))
    parsed.setdefault("name", f"{kind.replace('_', ' ')} grader")
    if kind == "python":
        parsed.setdefault("image_tag", IMAGE_TAG)
    return {"type": kind, "name": parsed.pop("name")} | parsed


def _respelled(given: dict[str, Any]) -> dict[str, Any]:
    """The token limit of a judge under the wire's own name, whichever documented one was given."""
    params = given.get("sampling_params")
    if not isinstance(params, Mapping) or "max_completions_tokens" in params:
        return given
    names = {"max_completion_tokens", "max_tokens"} & params.keys()
    if len(names) != 1:
        return given
    renamed = {"max_completions_tokens" if key in names else key: params[key] for key in params}
    return given | {"sampling_params": renamed}


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
    if purpose == "rft" and not SPECS[kind].works_in_jobs:
        raise GraderSpecError(
            f"{kind} works in evals only; use score_model here", param=_at(param, "type")
        )


def _parse_map(graders: Any, purpose: Purpose, param: str) -> dict[str, Any]:
    if not isinstance(graders, Mapping) or isinstance(graders.get("type"), str):
        raise GraderSpecError(
            f"`{param}` must be a map from a key to a grader, such as "
            '{"format": {"type": "string_check", …}, "content": {…}}, with the keys as variables '
            f"of `calculate_output`; found {_brief(graders)}",
            param=param,
        )
    if not graders:
        raise GraderSpecError(f"`{param}` is empty; it needs at least one grader", param=param)
    if len(graders) > MAX_GRADERS:
        raise GraderSpecError(
            f"`{param}` has {len(graders)} graders; at most {MAX_GRADERS} can be combined",
            param=param,
        )
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


def _validate(model: type[Named], given: dict[str, Any], param: str) -> Named:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = _at(param, _spell(first["loc"]))
        raise GraderSpecError(_reword(first, where, model), param=where) from None
    except RecursionError:
        raise GraderSpecError("the grader is nested too deeply", param=param or None) from None


def _check_values(model: Named, param: str) -> None:
    """Check what the field types cannot express."""
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
    if isinstance(model, Relative):
        _check_relative(model, param)
    if isinstance(model, Endpoint):
        _check_headers(model.headers or {}, param)
        if is_of_machine(model.url):
            raise GraderSpecError(
                f"`{_at(param, 'url')}`: {OF_MACHINE}; give the address of your grader",
                param=_at(param, "url"),
            )
    if isinstance(model, LabelModel):
        unknown = [label for label in model.passing_labels if label not in model.labels]
        if unknown:
            raise GraderSpecError(
                f"passing label {unknown[0]!r} is not among the labels {model.labels}",
                param=_at(param, "passing_labels"),
            )


def _criteria(given: Any, param: str) -> Any:
    """A rubric's criteria with what was left out filled in, or the place in the row."""
    if isinstance(given, str):
        path = lone_path(given)
        if path is None or path.namespace != "item":
            raise GraderSpecError(
                f"`{param}` must be a list of criteria, or one place in the row such as "
                f"{{{{item.rubric}}}}; found {_brief(given)}",
                param=param,
            )
        return given
    try:
        return [each.model_dump() for each in read_criteria(given)]
    except InputError as error:
        where = f"{param}{error.param or ''}"
        raise GraderSpecError(f"`{where}`: {error.message}", param=where) from None


def _check_relative(model: Relative, param: str) -> None:
    """Check that its prompt and anchor are the same for all answers of a row."""
    for field in ("input", "anchor"):
        where = _at(param, field)
        for text in _texts(getattr(model, field)):
            if any(path.namespace == "sample" for path in paths(text, param=where)):
                raise GraderSpecError(
                    f"`{where}` names the sample; a relative grader shows all answers of a group "
                    "itself, so name places in the row only, such as {{item.question}}",
                    param=where,
                )


def _texts(value: Any) -> list[str]:
    """The templates in a text, or in messages."""
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    if isinstance(value, Message):
        return _texts(value.content)
    return [value] if isinstance(value, str) else [getattr(value, "text", "")] * bool(value)


def _check_headers(headers: Mapping[str, str], param: str) -> None:
    if problem := header_problem(headers):
        name, why = problem
        where = _at(param, f"headers.{name}" if name else "headers")
        whose = f"the value of `{where}`" if name else "`headers`"
        raise GraderSpecError(f"{whose} {why}", param=where)


def _reword(error: Any, where: str, model: type[Named]) -> str:
    kind, found = error["type"], _brief(error["input"])
    if error["loc"][:1] == ("headers",):
        found = "something else"  # do not repeat a value that may be an API key
    if kind == "missing":
        return f"`{where}` is missing"
    if kind == "extra_forbidden":
        in_params = error["loc"][:-1] == ("sampling_params",)
        fields = (SamplingParams if in_params else model).model_fields
        near = difflib.get_close_matches(str(error["loc"][-1]), fields, n=1)
        return f"`{where}` is not a field of this grader" + (
            f"; did you mean `{near[0]}`?" if near else f" ({', '.join(fields)})"
        )
    if kind == "string_pattern_mismatch":  # only addresses have a pattern
        return f"`{where}` must begin with http:// or https:// and a host, found {found}"
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
    return cut(text, 80)
