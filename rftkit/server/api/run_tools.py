"""The tools of an eval run, checked before it is queued: what cannot run is refused here.

`sampling_params.tools` may name servers beside functions, as the `tools` of a job do; a model that
was trained by a job with tools has that job's. Whether a server answers is seen when the run
begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rftkit.errors import RequestError
from rftkit.server.api.job_body import check_steps
from rftkit.server.evals.episodes import RunTools, is_server, run_tools
from rftkit.server.inference.platform import Platform
from rftkit.tools import check_tools

__all__ = ["checked_tools"]

Json = dict[str, Any]
WHERE = "data_source.sampling_params"
Shown = tuple[str, Any]
"""The place where a function is defined, and its definition."""


def checked_tools(
    platform: Platform, model: str | None, sampling: Json | None, content: list[Json]
) -> Json | None:
    """Sampling parameters whose servers are checked.

    Args:
        platform: where the run is.
        model: of the run.
        sampling: its `sampling_params`.
        content: its rows, where the request has them.

    Raises:
        RequestError: naming the field; no message holds a secret.
    """
    given = sampling or {}
    tools = given.get("tools")
    if isinstance(tools, list):  # anything else is refused with the other parameters of a chat
        servers = [each for each in tools if isinstance(each, dict) and is_server(each)]
        checked = check_tools(servers, f"{WHERE}.tools", private=platform.private_tools)
        rest = [each for each in tools if not (isinstance(each, dict) and is_server(each))]
        given = {**given, "tools": [*rest, *checked]}
    found = run_tools(platform.store, model, given)
    if (steps := given.get("max_episode_steps")) is not None:
        check_steps(steps, f"{WHERE}.max_episode_steps")
        if found is None:
            raise RequestError(
                f"`{WHERE}.max_episode_steps` is given, and the platform can call no tool of this "
                f"run; put its servers into `{WHERE}.tools`: {{name, server_url, headers}}",
                param=f"{WHERE}.max_episode_steps",
            )
    if found is not None:
        _check_names(found, content)
    return sampling if sampling is None else given


def _check_names(tools: RunTools, content: list[Json]) -> None:
    """Refuse functions that no server has; what an MCP server has is not known yet."""
    if any(each.get("type") == "mcp" for each in tools.entries):
        return
    known = [each["name"] for each in tools.entries]
    whose = f"the tools of {tools.job_id}" if tools.job_id else "the servers of the run"
    for where, tool in _shown(tools, content):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if name not in known:
            raise RequestError(
                f"`{where}` has the function {name!r}, and {whose} are {', '.join(known)}; the "
                "names must match",
                param=where,
            )


def _shown(tools: RunTools, content: list[Json]) -> Iterator[Shown]:
    """The functions that the model will be shown."""
    if tools.functions is not None:
        for index, each in enumerate(tools.functions):
            yield f"{WHERE}.tools[{index}]", each
        return
    for number, entry in enumerate(content):
        given = entry["item"].get("tools")
        for index, each in enumerate(given if isinstance(given, list) else ()):
            yield f"data_source.source.content[{number}].item.tools[{index}]", each
