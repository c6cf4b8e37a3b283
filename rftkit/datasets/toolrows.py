"""The functions that rows show their model, compared with the tools of a job: as findings. Pure.

Whether a server answers is not looked at here (`rftkit.jobs.check_tools`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rftkit.datasets.findings import Finding
from rftkit.datasets.repeats import Part
from rftkit.datasets.scan import MALFORMED
from rftkit.tools import check_tools
from rftkit.wording import counted

__all__ = ["tool_findings"]

Entries = Sequence[Mapping[str, Any]] | None


def tool_findings(parts: Sequence[Part], tools: Entries) -> Iterator[Finding]:
    """What a job with these rows and `tools` would refuse, or would never call.

    Raises:
        RequestError: an entry of `tools` is malformed.
    """
    entries = None if tools is None else [dict(each) for each in tools]
    check_tools([each for each in entries or [] if not _is_operators(each)], "tools")
    rewarded = [part for part in parts if part.rows.form == "reinforcement"]
    for part in rewarded:
        yield from _malformed(part)
        if entries:
            yield from _unserved(part, entries)
        elif names := _names([part]):
            yield Finding(
                "info",
                "tools_without_server",
                f"{part.rows.name}: rows have the functions {', '.join(names)}, and nothing says "
                "where their calls go: answers that call are graded as they are. To have the calls "
                "made, give the job `tools`: a file tools.json, or --tools",
            )
    if entries and rewarded:
        yield from _unshown(entries, _names(rewarded))


def _malformed(part: Part) -> Iterator[Finding]:
    if (found := part.tally.functions.get(MALFORMED)) is not None:
        yield Finding(
            "error",
            "malformed_tool",
            f"{part.rows.name}: {counted(found.count, 'row')} with `tools` that are not functions",
            "write {type: 'function', function: {name, description, parameters}}; the "
            "`tools` of the job say where calls go",
            found.count,
            part.places(found.numbers),
        )


def _unserved(part: Part, entries: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    if any(each.get("type") == "mcp" for each in entries):
        return  # its functions are known when the job begins
    known = [each["name"] for each in entries]
    for name in _names([part]):
        if name not in known:
            found = part.tally.functions[name]
            yield Finding(
                "error",
                "unserved_tool",
                f"{part.rows.name}: {counted(found.count, 'row')} with the function {name!r}, and "
                f"`tools` of the job has {', '.join(known)}",
                "the names must match: rename one, or add a server for the function",
                found.count,
                part.places(found.numbers),
            )


def _unshown(entries: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> Iterator[Finding]:
    names = [each["name"] for each in entries if each.get("type") != "mcp"]
    if unshown := [name for name in names if name not in shown]:
        yield Finding(
            "warning",
            "unshown_tool",
            f"no row has the function {', '.join(unshown)} of the job's `tools`, so no model "
            "calls it",
            "define it in the `tools` of the rows: an HTTP server lists no functions",
        )


def _names(parts: Sequence[Part]) -> list[str]:
    found = dict.fromkeys(name for part in parts for name in part.tally.functions)
    return [name for name in found if name != MALFORMED]


def _is_operators(entry: Mapping[str, Any]) -> bool:
    """Whether it is an MCP server that the operator of a platform named, which may be elsewhere."""
    return entry.get("type") == "mcp" and entry.get("server_url") is None
