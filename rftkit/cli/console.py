"""What the commands share: options, plain-text tables and JSON on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rftkit.errors import InputError
from rftkit.jsontext import parse_json
from rftkit.safetext import Printable, json_printable, printable
from rftkit.strictjson import parse_strictly

__all__ = [
    "PLAIN",
    "Format",
    "Grader",
    "Json",
    "Pairs",
    "PromptFile",
    "make_printable",
    "parse_pairs",
    "parse_values",
    "print_json",
    "print_progress",
    "rewrite_line",
    "show",
    "table",
]

PLAIN: dict[str, Any] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "no_args_is_help": True,
    "add_completion": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""Settings of every `typer.Typer`: plain help and plain errors."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Grader = Annotated[Path | None, typer.Option("--grader", "-g", help="JSON file of the grader.")]
Format = Annotated[
    Path | None,
    typer.Option(
        "--response-format", "-f", help="JSON file of a response format that constrains answers."
    ),
]
ToolsFile = Annotated[
    Path | None,
    typer.Option(
        "--tools",
        metavar="FILE",
        help="Where the calls of the rows' tools go: JSON [{name, server_url, headers}].",
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompt", help="Prompt file to put before each row, from rftkit prompt optimize."
    ),
]
Pairs = list[str]
"""NAME=VALUE options, repeatable."""


def make_printable() -> None:
    """Escape control characters in all output from now on, because other people wrote the texts."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as with `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for the whole process
        if not isinstance(stream := getattr(sys, name), Printable):
            if hasattr(stream, "reconfigure"):  # a letter that the terminal cannot show is replaced
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, Printable(stream))


def rewrite_line(text: str) -> None:
    """Write progress over the current line."""
    stream = sys.stderr
    getattr(stream, "control", stream.write)("\r")
    print(printable(text), end="", file=stream, flush=True)


def show(value: Any, text: str, as_json: bool) -> None:
    """Print a result: as JSON for a program, as text for a person."""
    if as_json:
        print_json(value)
    else:
        print(text)


def print_progress(line: str, *, to_stderr: bool = True) -> None:
    """Print a line of progress; beside a result for a program it goes to stderr."""
    print(line, file=sys.stderr if to_stderr else sys.stdout, flush=True)


def print_json(value: Any) -> None:
    """Print JSON on stdout."""
    is_utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    print(json_printable(json.dumps(value, ensure_ascii=not is_utf8, indent=1)))


def parse_pairs(pairs: Pairs | None) -> dict[str, str]:
    """NAME=VALUE options as a dict.

    Raises:
        InputError: One has no `=`.
    """
    for pair in pairs or []:
        if "=" not in pair:
            raise InputError(f"expected NAME=VALUE, found {pair!r}")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs or [])}


def parse_values(pairs: Pairs | None) -> dict[str, Any]:
    """Like `parse_pairs`, but a value that is JSON, such as 8 or true, is parsed."""

    def value(text: str) -> Any:
        try:
            parse_json(text)
        except ValueError:
            return text
        try:
            return parse_strictly(text)
        except ValueError as error:
            if text.lstrip()[:1] not in ("{", "["):
                return text  # such as NaN, which JSON does not have
            raise InputError(f"{text[:80]!r} cannot be used as JSON: {error}") from None

    return {name: value(text) for name, text in parse_pairs(pairs).items()}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of rows with the first row's keys as its header; None is shown as a dash."""
    if not rows:
        return "nothing to show"
    names = list(rows[0])
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    right = [all(_is_number(row.get(name)) for row in rows) for name in names]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [names, *cells]
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else printable(str(value))


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)
