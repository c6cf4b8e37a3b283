"""Tool calls that a model made at will, read from its answer: the forms of common chat templates.

A call is marked (`MARKS`), or is the whole answer. Within a mark it is written as JSON (Hermes,
Qwen, Llama, Mistral, Granite, Phi, Cohere), as a name before JSON (newer Mistral, DeepSeek, Kimi,
Gemma), in tags (Qwen3-Coder, Qwen3.5, GLM, MiniMax) or as Python (Llama 4, LFM2, OLMo). What names
no tool of the request, or cannot be read to its end, stays text: nothing is lost. transformers'
`parse_response` needs a description that few tokenizers have, and drops an answer of which one part
cannot be read. Not here: forced calls (`tool_calls`), and how calls are put into a prompt
(`prompts`).
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

from rftkit.jsontext import as_text, parse_json

__all__ = [
    "CALL_END",
    "CALL_START",
    "answer_text",
    "attempted_calls_in",
    "call_id",
    "tool_calls_in",
]

Json = dict[str, Any]
Found = tuple[str, Any]
"""The name of a function, and its arguments: an object, or text."""

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
"""Around a call in the answers of Hermes, Qwen and others."""

MARKS = {
    CALL_START: CALL_END,  # Hermes, Qwen, SmolLM3, GLM 4.5
    "<|tool_call|>": "<|/tool_call|>",  # Granite 3, Phi-4-mini
    "<|tool_call_start|>": "<|tool_call_end|>",  # LFM2
    "<|tool_call_begin|>": "<|tool_call_end|>",  # Kimi K2
    "<｜tool▁call▁begin｜>": "<｜tool▁call▁end｜>",  # DeepSeek
    "<|tool_call>": "<tool_call|>",  # Gemma 4
    "<start_function_call>": "<end_function_call>",  # FunctionGemma
    "<|START_ACTION|>": "<|END_ACTION|>",  # Cohere
    "<|python_start|>": "<|python_end|>",  # Llama 4
    "<|python_tag|>": "",  # Llama 3
    "[TOOL_CALLS]": "",  # Mistral
    "<function_calls>": "</function_calls>",  # OLMo 3
    "<minimax:tool_call>": "</minimax:tool_call>",
    "<function=": "</function>",  # Qwen3-Coder at times; Llama 3 as Meta documents it
    "commentary to=functions.": "",  # gpt-oss
}
"""What opens a call, and what ends it; without an end it extends to the next one of its kind."""
AROUND = (
    "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>",
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
)  # fmt: skip
"""Marks around calls, which are removed together with the calls."""
WITHIN = (
    "[ARGS]",
    "[CALL_ID]",
    "<|tool_call_argument_begin|>",
    "<｜tool▁sep｜>",
    '<|"|>',
    "<escape>",
)
QUOTES = ('<|"|>', "<escape>")
"""What Gemma writes around a text in place of quotation marks."""
MOST_CHARACTERS = 20_000
"""Most characters of calls written as Python; a longer text is not parsed."""

_OPENING = re.compile("|".join(map(re.escape, sorted(MARKS, key=len, reverse=True))))
_NAMED = re.compile(
    r"(?:call:|functions?\.|function<｜tool▁sep｜>)?(?P<name>[\w./-]+?)(?::\d+)?(?:\[CALL_ID\]\w+)?"
    r"(?:\[ARGS\]|<\|tool_call_argument_begin\|>|<｜tool▁sep｜>)?(?: json)?"
    r"\s*(?:```json)?\s*(?P<arguments>\{.*\})\s*(?:```)?",
    re.DOTALL,
)
_NAME = re.compile(r"[\w./-]+")
_FUNCTION = re.compile(r'<function=(?P<name>[^>\n]+)>|<invoke name="(?P<invoked>[^"\n]+)">')
_KEY = re.compile(r'<parameter=(?P<key>[^>\n]+)>|<parameter name="(?P<named>[^"\n]+)"[^>\n]*>')
_PYTHON = re.compile(r"\[?\s*([\w.]+)\(")
_BARE_KEY = re.compile(r'"(?:\\.|[^"\\])*"|(?<=[{,])\s*(\w+)\s*:')


def tool_calls_in(text: str, tools: list[Json] | None) -> tuple[str, list[Json]]:
    """An answer without its tool calls, and the calls as chat completions spell them."""
    functions = [tool.get("function", tool) for tool in tools or []]
    known = {each["name"]: each for each in functions if each.get("name")}
    if not known:
        return text, []
    rest, found = _marked(text, known)
    if not found and (found := _json_calls(text, known) or _python_calls(text, known)):
        rest = ""
    if not found:
        return text, []
    for mark in AROUND:
        rest = rest.replace(mark, "")
    return rest.strip(), [_call(text, number, each) for number, each in enumerate(found)]


def attempted_calls_in(text: str, tools: list[Json] | None) -> list[Json]:
    """The calls of an answer, in order, whether or not there is such a function.

    Unlike `tool_calls_in`, which leaves those as text. What is marked as a call and cannot be read
    comes last, with the name "" and its text as arguments.
    """
    functions = [tool.get("function", tool) for tool in tools or []]
    known = _Anything({each["name"]: each for each in functions if each.get("name")})
    if not known:
        return []
    rest, found = _marked(text, known)
    if unread := _OPENING.search(rest):
        found.append(("", rest[unread.start() :]))
    if not found:
        return tool_calls_in(text, tools)[1]
    return [_call(text, number, each) for number, each in enumerate(found)]


class _Anything(dict[str, Json]):
    """Functions by name, for which every name is known."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str)

    def __missing__(self, name: str) -> Json:
        return {}


def call_id(text: str, number: int) -> str:
    """Return the same id for the same answer, so that a repeated job gives its grader the same."""
    return "call_" + hashlib.sha256(f"{number} {text}".encode()).hexdigest()[:24]


def answer_text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of an answer, with those control tokens that mark calls and without all others."""
    if dropped := _without_marks(tokenizer):
        kept = [token for token in tokens if token not in dropped]
        return str(tokenizer.decode(kept, skip_special_tokens=False))
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


@functools.lru_cache(maxsize=8)
def _without_marks(tokenizer: Any) -> frozenset[int] | None:
    """The control tokens that are no marks of calls; None when none is one."""
    marks = {*MARKS, *MARKS.values(), *AROUND, *WITHIN}
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    special = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    control = special | set(tokenizer.all_special_ids)
    kept = {number for number in control if added.get(number) in marks}
    return frozenset(control - kept) if kept else None


def _call(text: str, number: int, found: Found) -> Json:
    name, given = found
    arguments = as_text(given)
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "function": function, "id": call_id(text, number)}


def _marked(text: str, known: Json) -> tuple[str, list[Found]]:
    """The text outside of marked calls, and the calls; the last one may lack its end.

    The end of a mark is looked for until there is none, so that no text takes long.
    """
    rest: list[str] = []
    calls: list[Found] = []
    done, endless = 0, set[str]()
    opening = _OPENING.search(text)
    while opening is not None:
        mark, after = opening[0], opening.end()
        if mark not in endless:
            end = text.find(MARKS[mark] or mark, after)
            behind = end + len(MARKS[mark])
            if end < 0:
                endless.add(mark)
                end = behind = len(text)
            if found := _read(text[after:end], mark, known):
                rest.append(text[done : opening.start()])
                calls += found
                done = after = behind
            elif mark not in endless:
                after = behind
        opening = _OPENING.search(text, after)
    return "".join([*rest, text[done:]]), calls


def _read(body: str, mark: str, known: Json) -> list[Found]:
    """The calls of one mark; empty when they cannot be read or name no tool."""
    body = f"{mark}{body}" if mark == "<function=" else body
    readers = (_json_calls, _tagged_calls, _named_call, _python_calls)
    return next((found for reader in readers if (found := reader(body, known))), [])


def _json_calls(body: str, known: Json) -> list[Found]:
    """Objects or lists of them, one after the other or with semicolons between."""
    decoder, entries, place = json.JSONDecoder(), [], 0
    text = body.strip()
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return []
        entries += value if isinstance(value, list) else [value]
        while place < len(text) and text[place] in "; \n\t\r":
            place += 1
    found = [each for each in map(_entry, entries) if each and each[0] in known]
    return found if len(found) == len(entries) else []


def _entry(entry: Any) -> Found | None:
    """A call as an object, in any of the spellings of its two keys."""
    if isinstance(entry, dict) and isinstance(entry.get("function"), dict):
        entry = entry["function"]
    if not isinstance(entry, dict):
        return None
    name = entry.get("name", entry.get("tool_name"))
    given = entry.get("arguments", entry.get("parameters"))
    return (name, {} if given is None else given) if isinstance(name, str) else None


def _named_call(body: str, known: Json) -> list[Found]:
    """A name before its arguments."""
    match = _NAMED.fullmatch(body.strip())
    if match is None or match["name"] not in known:
        return []
    arguments = _object(match["arguments"])
    return [] if arguments is None else [(match["name"], arguments)]


def _object(text: str) -> Json | None:
    """An object, perhaps with Gemma's quotes and keys."""
    for quote in QUOTES:
        if quote in text:
            parts = text.split(quote)
            text = "".join(json.dumps(part) if i % 2 else part for i, part in enumerate(parts))
    for read in (text, _BARE_KEY.sub(lambda m: f'"{m[1]}":' if m[1] else m[0], text)):
        with contextlib.suppress(ValueError):
            value = parse_json(read)
            return value if isinstance(value, dict) else None
    return None


def _tagged_calls(body: str, known: Json) -> list[Found]:
    """Names and parameters in tags; only the last one may lack its end."""
    heads = list(_FUNCTION.finditer(body))
    if not heads or body[: heads[0].start()].strip():
        return _glm_call(body, known)
    ends = [*(head.start() for head in heads[1:]), len(body)]
    found: list[Found] = []
    for head, end in zip(heads, ends, strict=True):
        name = (head["name"] or head["invoked"]).strip()
        inside, closed, behind = body[head.end() : end].partition(
            "</function>" if head["name"] else "</invoke>"
        )
        if name not in known or behind.strip() or not (closed or end == len(body)):
            return []
        is_object = inside.lstrip().startswith("{")
        given = _object(inside) if is_object else _parameters(inside, known[name])
        if given is None:
            return []
        found.append((name, given))
    return found


def _parameters(inside: str, function: Json) -> Json | None:
    """The values of parameters in tags; None when there is other text."""
    given = {}
    for part in inside.split("</parameter>"):
        head = _KEY.search(part)
        if part[: head.start() if head else None].strip():
            return None
        if head:
            key = (head["key"] or head["named"]).strip()
            given[key] = _typed(part[head.end() :], key, function)
    return given


def _glm_call(body: str, known: Json) -> list[Found]:
    name, *parts = body.split("<arg_key>")
    name = name.strip()
    if name not in known or not _NAME.fullmatch(name):  # an attempt may use any name
        return []
    given = {}
    for part in parts:
        key, _, value = part.partition("</arg_key>")
        value = value.strip().removeprefix("<arg_value>").strip().removesuffix("</arg_value>")
        given[key.strip()] = _typed(value, key.strip(), known[name])
    return [(name, given)]


def _typed(text: str, key: str, function: Json) -> Any:
    """A value as its schema has it: text where that allows text, else JSON if it is."""
    text = text.removeprefix("\n").removesuffix("\n")
    properties = (function.get("parameters") or {}).get("properties") or {}
    kinds = _kinds(properties.get(key))
    plain = text.strip()
    if "string" in kinds or (not kinds and plain[:1] not in ("{", "[")):
        return None if plain == "null" and "null" in kinds else text
    if "boolean" in kinds and plain in ("True", "False"):
        return plain == "True"
    try:
        return parse_json(text)
    except ValueError:
        return text


def _kinds(schema: Any) -> set[str]:
    """The types that a schema names, also in its alternatives."""
    if not isinstance(schema, dict):
        return set()
    named = schema.get("type")
    found = {named} if isinstance(named, str) else {str(each) for each in named or ()}
    for choice in (*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())):
        found |= _kinds(choice)
    return found


def _python_calls(body: str, known: Json) -> list[Found]:
    """Calls with named arguments that are literals, alone, in a list or one a line."""
    text = body.strip()
    head = _PYTHON.match(text)
    if head is None or head[1].removesuffix(".call") not in known or len(text) > MOST_CHARACTERS:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unknown escapes
            lines = ast.parse(text).body
        values = [line.value for line in lines if isinstance(line, ast.Expr)]
        nodes = [node for each in values for node in getattr(each, "elts", [each])]
        found = [_python_call(node) for node in nodes if len(values) == len(lines)]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []
    return found if all(name in known for name, _ in found) else []


def _python_call(node: ast.expr) -> Found:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with named arguments")
    name = ast.unparse(node.func).removesuffix(".call")
    given = {each.arg: ast.literal_eval(each.value) for each in node.keywords if each.arg}
    json.dumps(given, allow_nan=False)  # sets and bytes cannot be arguments
    return name, given
