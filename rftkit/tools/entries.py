"""The `tools` of a job: where the calls of each function go. Checked before the job exists.

An entry is `{name, server_url, headers?}`, or `{type: "mcp", server_label, server_url, headers?,
allowed_tools?}` as in OpenAI's Responses API. A server that comes with rftkit is
`rftkit://<dataset>`. An MCP server without a URL is one that the operator of this machine named in
the file of `RFTKIT_MCP_SERVERS`: no request starts a command. Not here: whether a server answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from rftkit import settings
from rftkit.errors import InputError, RequestError
from rftkit.examples import FUNCTION_NAME
from rftkit.graders.hosts import is_of_machine, is_private
from rftkit.graders.posting import header_problem, secrets_in
from rftkit.hyperparameters import refuse_misspelt
from rftkit.rows import kind_of
from rftkit.safetext import HIDDEN, redacted
from rftkit.tools.bundled import SCHEME, bundled_names
from rftkit.tools.values import Json

__all__ = ["check_tools", "mask_tools", "server_label"]

MOST = 128
"""Entries of a job, as many as functions of a chat."""
KEYS = {
    "http": ("name", "server_url", "headers", "type"),
    "mcp": (
        "type", "server_label", "name", "server_url", "server_description", "headers",
        "authorization", "allowed_tools", "require_approval",
    ),
}  # fmt: skip
COMMANDS = ("command", "args", "env", "cwd")
OURS = ("host", "content-length", "transfer-encoding", "content-type", "connection")
SECRET = re.compile(
    r"(^|[_-])(key|apikey|token|secret|password|passwd|pwd|sig|signature|auth|code)$", re.IGNORECASE
)
"""Names of query parameters that hold a secret."""


def check_tools(given: Any, param: str, *, private: bool = True) -> list[Json]:
    """The entries, normalised.

    Args:
        given: what the body has.
        param: the field it is in.
        private: whether addresses of this machine and network may be called.

    Raises:
        RequestError: naming the field; no message holds a secret.
    """
    if not isinstance(given, list):
        raise RequestError(f"`{param}` must be a list, found {kind_of(given)}", param=param)
    if len(given) > MOST:
        raise RequestError(f"`{param}` has {len(given)} entries, at most {MOST}", param=param)
    entries = [_entry(each, f"{param}[{index}]", private) for index, each in enumerate(given)]
    _refuse_repeated(entries, param)
    return entries


def mask_tools(entries: Any) -> Any:
    """The entries without the values of headers and of secrets in URLs, to be echoed and shown."""
    if not isinstance(entries, list):
        return entries
    return [_masked(each) if isinstance(each, Mapping) else each for each in entries]


def server_label(entry: Mapping[str, Any]) -> str:
    """The name of an MCP server."""
    return str(entry.get("server_label") or entry.get("name"))


def _masked(entry: Mapping[str, Any]) -> Json:
    shown = dict(entry)
    if isinstance(url := shown.get("server_url"), str):
        shown["server_url"] = redacted(url, secrets_in(url))
    if isinstance(shown.get("headers"), Mapping):
        shown["headers"] = dict.fromkeys(shown["headers"], HIDDEN)
    if shown.get("authorization"):
        shown["authorization"] = HIDDEN
    return shown


def _entry(given: Any, where: str, private: bool) -> Json:
    if not isinstance(given, dict):
        raise RequestError(
            f"`{where}` must be {{name, server_url, headers}}, found {kind_of(given)}", param=where
        )
    kind = given.get("type")
    if kind == "function" or isinstance(given.get("function"), dict):
        raise RequestError(
            f"`{where}` is the definition of a function, which belongs into `tools` of the rows; "
            "the job says where its calls go: {name, server_url, headers}",
            param=where,
        )
    if kind not in (None, "http", "mcp"):
        raise RequestError(
            f"`{where}.type` must be mcp, or left out for an HTTP server; found {kind_of(kind)}",
            param=f"{where}.type",
        )
    known = KEYS["mcp" if kind == "mcp" else "http"]
    if kind == "mcp":
        _check_mcp(given, where)
    refuse_misspelt(given, known, where, cutoff=0.85)
    name_key = "name" if kind != "mcp" or "server_label" not in given else "server_label"
    _check_name(given.get(name_key), f"{where}.{name_key}")
    url = given.get("server_url")
    if url is not None or kind != "mcp":
        _check_url(url, f"{where}.server_url", private, is_mcp=kind == "mcp")
    headers = _headers(given.get("headers"), f"{where}.headers")
    entry = {key: value for key, value in given.items() if value is not None}
    return {**entry, "headers": headers}


def _check_name(name: Any, where: str) -> None:
    if name is None:
        raise RequestError(f"Missing required parameter: `{where}`.", param=where)
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise RequestError(
            f"`{where}` must be 1 to 64 letters, digits, _ and -, found {kind_of(name)}"
            + (f" {name[:80]!r}" if isinstance(name, str) else ""),
            param=where,
        )


def _check_url(url: Any, where: str, private: bool, *, is_mcp: bool) -> None:
    if url is None:
        raise RequestError(f"Missing required parameter: `{where}`.", param=where)
    if not isinstance(url, str):
        raise RequestError(f"`{where}` must be text, found {kind_of(url)}", param=where)
    if url.startswith(SCHEME) and not is_mcp:
        if url.removeprefix(SCHEME) not in (names := bundled_names()):
            raise RequestError(
                f"`{where}` names no tool server that comes with rftkit; there are "
                + (", ".join(f"{SCHEME}{each}" for each in names) or "none"),
                param=where,
            )
        return
    if problem := _url_problem(url):
        raise RequestError(f"`{where}` {problem}", param=where)
    if is_of_machine(url):
        raise RequestError(
            f"`{where}` is link-local or of a cloud's metadata service, which describes this "
            "machine and is no tool",
            param=where,
        )
    if not private and is_private(url):
        raise RequestError(
            f"`{where}` is an address of this machine or network ({urlsplit(url).hostname}). This "
            "platform listens beyond this machine, so its tools must be at public addresses; the "
            "operator can allow others with RFTKIT_PRIVATE_TOOLS=1 where the platform starts",
            param=where,
        )


def _url_problem(url: str) -> str | None:
    """Why a URL cannot be called, without the URL: it may hold a secret."""
    if re.search(r"[\s\x00-\x1f\x7f\\]", url):
        return "has blanks, backslashes or control characters; write them as %20 and so on"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is no URL; expected one such as https://tools.example.com/search"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return "must be a URL such as https://tools.example.com/search"
    if parts.username is not None or parts.password is not None:
        return (
            "holds a user name or a password; put it into `headers`, such as "
            '{"Authorization": "Basic …"}: URLs end up in logs'
        )
    if named := [name for name, _ in parse_qsl(parts.query) if SECRET.search(name)]:
        return (
            f"holds a secret in its query ({named[0][:40]}); put it into `headers`, such as "
            '{"Authorization": "Bearer …"}: URLs end up in logs'
        )
    return None


def _headers(given: Any, where: str) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(each, str) for each in given.values()):
        raise RequestError(f"`{where}` must be an object of texts", param=where)
    if problem := header_problem(given):
        name, why = problem
        at = f"{where}.{name}" if name else where
        raise RequestError(f"{'the value of ' if name else ''}`{at}` {why}", param=at)
    for name, value in given.items():
        if name.lower() in OURS:
            raise RequestError(f"`{where}.{name}` is set by the platform", param=f"{where}.{name}")
        if value and not value.strip("*"):
            raise RequestError(
                f"the value of `{where}.{name}` is masked, as jobs show it; give the real one",
                param=f"{where}.{name}",
            )
    return dict(given)


def _check_mcp(given: Json, where: str) -> None:
    if named := [key for key in COMMANDS if key in given]:
        raise RequestError(
            f"`{where}.{named[0]}`: no request starts a command. The operator of the platform "
            "names it in the file of RFTKIT_MCP_SERVERS, and the job names the server by "
            "`server_label`",
            param=f"{where}.{named[0]}",
        )
    if given.get("connector_id") is not None:
        raise RequestError(
            f"`{where}.connector_id`: there are no connectors here; give a `server_url`",
            param=f"{where}.connector_id",
        )
    if given.get("require_approval") not in (None, "never"):
        raise RequestError(
            f"`{where}.require_approval` must be never: nobody approves the calls of a rollout",
            param=f"{where}.require_approval",
        )
    if (token := given.get("authorization")) is not None and (
        not isinstance(token, str) or header_problem({"Authorization": token}) or not token
    ):
        raise RequestError(
            f"`{where}.authorization` must be a token", param=f"{where}.authorization"
        )
    _check_allowed(given.get("allowed_tools"), f"{where}.allowed_tools")
    if given.get("server_url") is None:
        _check_operators(server_label(given), where)


def _check_allowed(given: Any, where: str) -> None:
    names = given.get("tool_names") if isinstance(given, dict) else given
    if given is not None and not (
        isinstance(names, list) and names and all(isinstance(each, str) for each in names)
    ):
        raise RequestError(
            f"`{where}` must be a list of names, found {kind_of(given)}", param=where
        )


def _check_operators(label: str, where: str) -> None:
    try:
        known = settings.mcp_servers()
    except InputError as error:
        raise RequestError(f"`{where}` has no `server_url`, and {error}", param=where) from None
    if label not in known:
        raise RequestError(
            f"`{where}` has no `server_url`, and the operator of this platform has named no server "
            f"{label[:80]!r}; "
            + (
                f"there are {', '.join(known)}"
                if known
                else "commands are allowed with RFTKIT_MCP_SERVERS, the path of a JSON file "
                '{"mcpServers": {"NAME": {"command": …, "args": […]}}}'
            ),
            param=f"{where}.server_url",
        )


def _refuse_repeated(entries: Sequence[Json], param: str) -> None:
    for key, found in (
        ("name", [each["name"] for each in entries if each.get("type") != "mcp"]),
        ("server_label", [server_label(each) for each in entries if each.get("type") == "mcp"]),
    ):
        if (twice := _twice(found)) is not None:
            raise RequestError(
                f"`{param}` has two entries with {key} {twice!r}; give each its own", param=param
            )


def _twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
