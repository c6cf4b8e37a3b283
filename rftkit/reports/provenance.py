"""The provenance of a page, its last section: parameters, sources with hashes, versions, commit.

A notebook names its sources with `made_from`, in any cell. Parameters that are paths of files are
hashed automatically.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rftkit.reports.parameters import Parameter
from rftkit.views import Html, keyvalues, table
from rftkit.views.markup import html, join

__all__ = ["MIME", "PACKAGES", "Making", "made_from", "provenance", "versions"]

MIME = "application/vnd.rftkit.source+json"
"""The output of a notebook that names what its report was made from."""

PACKAGES = (
    *("rftkit", "openai", "torch", "transformers", "llguidance", "pandas", "numpy", "matplotlib"),
    *("papermill", "ipykernel"),
)
"""A report states the versions of these packages; those not installed are left out."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Making:
    """The inputs and times of one report."""

    notebook: Path
    declared: Mapping[str, Parameter]
    given: Mapping[str, Any]
    """The parameters that differ from their defaults."""
    started: datetime
    seconds: float
    """How long the notebook ran."""


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    what: str
    """A path, a value, or a kind of source."""
    rows: int | None = None
    bytes: int | None = None
    sha256: str | None = None


def made_from(**sources: Any) -> None:
    """Name the sources of this report; its last section lists them with hashes.

    Args:
        **sources: name -> a `Path` (the file is hashed), a grader or other JSON (hashed over its
            canonical form), a mapping that brings its own `sha256`, or a plain fact such as a seed
            or an id.

    Raises:
        OSError: a file cannot be read.
    """
    from IPython.display import display

    found = [asdict(_source(name, value)) for name, value in sources.items() if value is not None]
    display({MIME: found, "text/plain": "(sources, stated at the end)"}, raw=True)


def provenance(making: Making, sources: Iterable[Json]) -> Html:
    """The section: facts, parameters, sources."""
    parameters = [
        {
            "parameter": name,
            "value": repr(making.given[name]) if name in making.given else each.default,
            "which is": "given" if name in making.given else "the default",
        }
        for name, each in making.declared.items()
    ]
    named = list(sources)
    known = {source["sha256"] for source in named}
    found = [*named, *(each for each in _files(making.given) if each["sha256"] not in known)]
    parts = [keyvalues(_facts(making))]
    parts += [table(parameters, caption="Parameters", noun="parameter")] if parameters else []
    parts += [table(found, _COLUMNS, caption="Made from", noun="source")] if found else []
    return html('<section><h2 id="Provenance">Provenance</h2>{}</section>', join(parts))


def versions() -> dict[str, str]:
    """Python, the machine and the packages of the process that makes the report."""
    found = {"python": platform.python_version(), "machine": platform.platform(terse=True)}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


_COLUMNS = {"name": "name", "what": "what", "rows": "rows", "bytes": "bytes", "sha256": "sha256"}


def _facts(making: Making) -> Json:
    return {
        "notebook": making.notebook.name,
        "notebook sha256": hashlib.sha256(making.notebook.read_bytes()).hexdigest(),
        "commit": _commit(making.notebook.resolve().parent) or _commit(Path.cwd()),
        "made": f"{making.started:%Y-%m-%d %H:%M:%S} UTC, in {making.seconds:.1f} s",
        "versions": ", ".join(f"{name} {found}" for name, found in versions().items()),
    }


def _source(name: str, value: Any) -> _Source:
    if isinstance(value, os.PathLike):
        return _file(name, Path(value))
    if isinstance(value, Mapping) and "sha256" in value:
        what = str(value.get("name") or value.get("id") or "file")
        return _Source(name, what, value.get("rows"), value.get("bytes"), value["sha256"])
    if isinstance(value, Mapping | list | tuple):
        kind = value.get("type") if isinstance(value, Mapping) else None
        body = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest = hashlib.sha256(body.encode()).hexdigest()
        return _Source(name, f"JSON, {kind}" if kind else "JSON", None, len(body.encode()), digest)
    return _Source(name, str(value))


def _file(name: str, path: Path) -> _Source:
    content = path.read_bytes()
    is_rows = path.suffix in (".jsonl", ".ndjson")
    rows = sum(bool(line.strip()) for line in content.split(b"\n")) if is_rows else None
    called = str(Path(*path.parts[-2:])) if path.is_absolute() else str(path)
    return _Source(name, called, rows, len(content), hashlib.sha256(content).hexdigest())


def _files(given: Mapping[str, Any]) -> list[Json]:
    """Parameters that are paths of files."""
    paths = {name: Path(value) for name, value in given.items() if value and _is_path(value)}
    return [asdict(_file(name, path)) for name, path in paths.items() if path.is_file()]


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 1024 and "\0" not in value


def _commit(folder: Path) -> str | None:
    """The commit of the repository that holds `folder`; None without git or outside one."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return f"{head} and uncommitted changes" if _git(folder, "status", "--porcelain") else head
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return done.stdout.strip()


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)
