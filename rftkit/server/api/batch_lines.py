"""The lines of a batch's input file: what each must have, with the codes of the hosted service.

All mistakes are found before the first request is answered. Not here: whether the model takes a
request, which its own answer says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.jsontext import parse_json
from rftkit.rows import BOM
from rftkit.strictjson import read_value

__all__ = ["MAX_BYTES", "MAX_REQUESTS", "Line", "mistakes", "read_lines"]

MAX_REQUESTS, MAX_BYTES = 50_000, 200 * 1024 * 1024
MAX_MISTAKES = 100
"""Most mistakes of one file that are listed."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One request."""

    number: int
    """The number of the line in the file, from 1."""
    custom_id: str
    body: Json


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the requests of a file that has no mistakes."""
    for number, text in _filled(path):
        given = parse_json(text)
        yield Line(number, given["custom_id"], given["body"])


def mistakes(path: Path, endpoint: str) -> tuple[list[Json], int, str | None]:
    """What is wrong with a file, how many requests it has, and their model.

    Returns:
        `{code, line, message, param}` of each mistake, at most `MAX_MISTAKES`.
    """
    found: list[Json] = []
    seen: dict[str, int] = {}
    model: str | None = None
    num = 0
    for number, text in _filled(path):
        num += 1
        if num > MAX_REQUESTS:
            return [_mistake("too_many_tasks", None, _too_many(), None)], num, model
        if len(found) >= MAX_MISTAKES:
            continue
        problem, given = _parsed(text, number)
        if problem is None:
            problem = _wrong_line(given, number, endpoint, seen, model)
        if problem is not None:
            found.append(problem)
            continue
        seen[given["custom_id"]] = number
        model = given["body"]["model"]
    if not num:
        found.append(_mistake("empty_file", None, "The input file has no requests.", None))
    return found, num, model


def _filled(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.removeprefix(BOM) if number == 1 else line
            if text.strip():
                yield number, text


def _parsed(text: bytes, number: int) -> tuple[Json | None, Json]:
    message = "This line is not parseable as valid JSON."
    try:
        given = read_value(text, ValueError)
    except ValueError as error:
        given, message = None, f"{message[:-1]}: {error}."
    if isinstance(given, dict):
        return None, given
    return _mistake("invalid_json_line", number, message, None), {}


def _wrong_line(
    given: Json, number: int, endpoint: str, seen: dict[str, int], model: str | None
) -> Json | None:
    """What is wrong with a line; None if nothing is."""
    for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
        if name not in given:
            message = f"Missing required parameter: '{name}'."
            return _mistake("missing_required_parameter", number, message, name)
        if not isinstance(given[name], kind) or not given[name]:
            wanted = "a string" if kind is str else "an object"
            message = f"Invalid type for '{name}': expected {wanted} that is not empty."
            return _mistake("invalid_type", number, message, name)
    if given["method"].upper() != "POST":
        message = f"Invalid method '{given['method']}': only 'POST' is supported."
        return _mistake("invalid_method", number, message, "method")
    if given["url"].rstrip("/") != endpoint:
        message = (
            f"The URL provided for this request ('{given['url']}') does not match the endpoint of "
            f"the batch ('{endpoint}')."
        )
        return _mistake("url_mismatch", number, message, "url")
    if given["custom_id"] in seen:
        message = (
            f"The custom_id '{given['custom_id']}' for this request is a duplicate of another "
            f"request (line {seen[given['custom_id']]}). The custom_id parameter must be unique "
            "for each request in a batch."
        )
        return _mistake("duplicate_custom_id", number, message, "custom_id")
    return _wrong_body(given["body"], number, model)


def _wrong_body(body: Json, number: int, model: str | None) -> Json | None:
    if not isinstance(body.get("model"), str):
        message = "Missing required parameter: 'body.model'."
        return _mistake("missing_required_parameter", number, message, "body.model")
    if model is not None and body["model"] != model:
        message = (
            f"The provided model '{body['model']}' does not match the model '{model}' of the "
            "requests before it. All requests of a batch must use the same model."
        )
        return _mistake("model_mismatch", number, message, "body.model")
    if body.get("stream"):
        message = "Streaming is not supported in a batch."
        return _mistake("invalid_value", number, message, "body.stream")
    return None


def _too_many() -> str:
    return (
        f"The input file has more than {MAX_REQUESTS:,} requests, the limit for a batch. Split it."
    )


def _mistake(code: str, line: int | None, message: str, param: str | None) -> Json:
    return {"code": code, "line": line, "message": message, "param": param}
