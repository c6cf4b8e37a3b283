"""The only reader of environment variables: folders, services and keys.

Every function reads the environment when it is called, so a
test or a notebook can change a variable without re-importing anything.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs

from rftkit.errors import InputError

__all__ = [
    "DEFAULT_PORT",
    "Judge",
    "azure",
    "child_environment",
    "home",
    "judge",
    "jupyter_session",
    "keys",
    "lab_environment",
    "mcp_servers",
    "mode",
    "package_client_environment",
    "private_tools",
    "private_tools_allowed",
    "remote",
    "report_csv",
    "server_api_key",
    "tinker_api_key",
    "unconfined_graders",
    "uv",
    "webhook",
]

DEFAULT_PORT = 8642
IDLE_MINUTES = 60


@dataclass(frozen=True, slots=True)
class Judge:
    """Where model graders send their calls."""

    base_url: str | None
    """An OpenAI-compatible endpoint, or None for the local platform."""
    api_key: str | None


def home() -> Path:
    """The folder that holds everything the platform keeps (`RFTKIT_HOME`)."""
    given = os.environ.get("RFTKIT_HOME")
    return Path(given).expanduser() if given else Path(platformdirs.user_data_path("rftkit"))


def remote() -> tuple[str | None, str | None]:
    """`OPENAI_BASE_URL` and `OPENAI_API_KEY`, each None when unset or empty."""
    return os.environ.get("OPENAI_BASE_URL") or None, os.environ.get("OPENAI_API_KEY") or None


def azure() -> tuple[str | None, str | None, str | None]:
    """`AZURE_OPENAI_ENDPOINT`, `AZURE_OPENAI_API_KEY`, `OPENAI_API_VERSION`; None when empty."""
    names = ("AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY", "OPENAI_API_VERSION")
    endpoint, api_key, version = (os.environ.get(name) or None for name in names)
    return endpoint, api_key, version


def judge() -> Judge:
    """`RFTKIT_JUDGE_BASE_URL` and `RFTKIT_JUDGE_API_KEY`."""
    return Judge(
        base_url=os.environ.get("RFTKIT_JUDGE_BASE_URL") or None,
        api_key=os.environ.get("RFTKIT_JUDGE_API_KEY") or None,
    )


def judge_concurrency() -> int:
    """`RFTKIT_JUDGE_CONCURRENCY`: concurrent calls of a job's graders; 8 if unset."""
    given = os.environ.get("RFTKIT_JUDGE_CONCURRENCY") or "8"
    return max(1, int(given)) if given.isdecimal() else 8


def server_api_key() -> str | None:
    """`RFTKIT_API_KEY`: the key that the local platform asks of its clients."""
    return os.environ.get("RFTKIT_API_KEY") or None


def tinker_api_key() -> str | None:
    """`TINKER_API_KEY`: the key of a Tinker server that has accounts."""
    return os.environ.get("TINKER_API_KEY") or None


_SECRET_ENDINGS = ("_API_KEY", "_ADMIN_KEY", "_ACCESS_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
"""Endings of the names of variables whose values are secret: those that rftkit reads, `HF_TOKEN`, …
"""


def keys() -> list[str]:
    """Every key and secret of the environment, so that no message repeats one."""
    return [
        value
        for name, value in os.environ.items()
        if name.endswith(_SECRET_ENDINGS) and len(value) >= 8
    ]


def webhook() -> tuple[str | None, str | None]:
    """`RFTKIT_WEBHOOK_URL` and `OPENAI_WEBHOOK_SECRET`: where webhooks go."""
    return (
        os.environ.get("RFTKIT_WEBHOOK_URL") or None,
        os.environ.get("OPENAI_WEBHOOK_SECRET") or None,
    )


def mode() -> Literal["live", "static"] | None:
    """`RFTKIT_MODE`: force widgets on (`live`) or off (`static`); None decides by the kernel."""
    value = os.environ.get("RFTKIT_MODE")
    if value in (None, ""):
        return None
    if value not in ("live", "static"):
        raise InputError(f"RFTKIT_MODE must be 'live' or 'static', found {value!r}")
    return "live" if value == "live" else "static"


def report_csv() -> str | None:
    """`RFTKIT_REPORT_CSV`: where a report that runs puts full tables, as the start of paths."""
    return os.environ.get("RFTKIT_REPORT_CSV") or None


def jupyter_session() -> str | None:
    """`JPY_SESSION_NAME`: the notebook that a Jupyter server started this kernel for."""
    return os.environ.get("JPY_SESSION_NAME") or None


def private_tools() -> bool:
    """Whether tools may be at addresses of this machine and network: unless
    `RFTKIT_PRIVATE_TOOLS=0`, which a platform that listens beyond loopback sets for its worker.
    """
    return os.environ.get("RFTKIT_PRIVATE_TOOLS") != "0"


def private_tools_allowed() -> bool:
    """`RFTKIT_PRIVATE_TOOLS=1`: even a platform that listens beyond loopback may call them."""
    return os.environ.get("RFTKIT_PRIVATE_TOOLS") == "1"


def mcp_servers() -> dict[str, dict[str, Any]]:
    """The commands of `RFTKIT_MCP_SERVERS`, a JSON file `{"mcpServers": {name: {command, args?,
    env?, cwd?}}}`, as other MCP clients have it; none when unset.

    Raises:
        InputError: the file cannot be read, or is not that.
    """
    from rftkit.jsondocuments import read_document

    path = os.environ.get("RFTKIT_MCP_SERVERS")
    if not path:
        return {}
    try:
        given = read_document(Path(path).expanduser())["mcpServers"]
        servers = {name: dict(each) for name, each in given.items()}
    except InputError as error:
        raise InputError(
            f"the file of RFTKIT_MCP_SERVERS cannot be read: {error.message}"
        ) from None
    except (ValueError, TypeError, LookupError, AttributeError):
        servers = {"": {}}
    if not all(isinstance(each.get("command"), str) for each in servers.values()):
        raise InputError(
            "the file of RFTKIT_MCP_SERVERS must be "
            '{"mcpServers": {"NAME": {"command": "…", "args": ["…"]}}}'
        )
    return servers


def unconfined_graders() -> bool:
    """`RFTKIT_UNCONFINED_GRADERS=1`: run python graders where they cannot be isolated."""
    return os.environ.get("RFTKIT_UNCONFINED_GRADERS") == "1"


def uv() -> str | None:
    """The program `uv`: the one that runs this process (`UV`), or the first on `PATH`."""
    return os.environ.get("UV") or shutil.which("uv")


def package_client_environment(temporary: Path, resumes: int) -> dict[str, str]:
    """The environment for pip or uv: the user's, but with temporary files in a folder of rftkit's.

    `resumes` is how often pip resumes a download that breaks off, unless the user has set it.
    """
    own = {"TMPDIR": str(temporary), "TEMP": str(temporary), "TMP": str(temporary)}
    own |= {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return {"PIP_RESUME_RETRIES": str(resumes), **os.environ, **own}


def lab_environment(config_dir: Path, token: str) -> dict[str, str]:
    """The environment for JupyterLab: `config_dir` comes first of where it looks for defaults.

    Unless the user has set a token, JupyterLab gets `token`; it would log a generated one.
    """
    others = os.environ.get("JUPYTER_CONFIG_PATH")
    path = os.pathsep.join([str(config_dir), *([others] if others else [])])
    environment = {**os.environ, "JUPYTER_CONFIG_PATH": path}
    if not (os.environ.get("JUPYTER_TOKEN") or os.environ.get("JUPYTER_TOKEN_FILE")):
        environment["JUPYTER_TOKEN"] = token
    return environment


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for processes of the platform: hub libraries offline, no hosted API key."""
    environment = dict(os.environ)
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "AZURE_OPENAI_API_KEY"):
        environment.pop(name, None)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        environment.setdefault(name, "1")
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment.update(extra or {})
    return environment
