"""The index of a sweep: one line for each run, with a link, its settings and its results.

Not here: making the reports. Values that are the same in every run are shown once, below the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from rftkit.views import Html, keyvalues, page, table
from rftkit.views.markup import counted, text, wrap

__all__ = ["index_page"]

Json = dict[str, Any]
_MARKS = {"done": "report", "failed": "✗ failed", "running": "… running", "waiting": "waiting"}


def index_page(title: str, runs: Sequence[Json], comparison: str | None) -> str:
    """One HTML document over the runs of a sweep.

    Args:
        title: The title of the sweep.
        runs: The runs as in the state of the sweep.
        comparison: File name of the page that compares all runs.
    """
    lines = [_line(run) for run in runs]
    names = list(dict.fromkeys(name for line in lines for name in line))
    common = {name: shared[0] for name in names if (shared := _shared(name, lines))}
    columns = [name for name in names if name not in common]
    link = f' · <a href="{text(comparison)}">All runs compared</a>' if comparison else ""
    parts = [
        f"<h1>Sweep of {text(title)}</h1>",
        wrap(f'<p class="rk-verdict">{_progress(runs)}</p>{_found(runs)}{link}'),
        table(lines, columns, noun="run", page=100, max_bytes=2_000_000),
        '<h2 id="same">The same in every run</h2>' + keyvalues(common) if common else "",
    ]
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return page(
        f"Sweep of {title}", "".join(parts), foot=f"Made with rftkit {version('rftkit')}, {made}."
    )


def _line(run: Json) -> Json:
    results = dict(_flat(run["figures"] or {}))
    return {
        "run": _link(run),
        **run["settings"],
        **results,
        "seconds": run["seconds"] and round(run["seconds"], 1),
    } | ({"error": run["error"]} if run["error"] else {})


def _link(run: Json) -> Html:
    mark = _MARKS[run["status"]]
    if run["status"] not in ("done", "failed"):
        return Html(text(mark))
    tone = ' class="rk-bad"' if run["status"] == "failed" else ""
    return Html(f'<a{tone} style="white-space:nowrap" href="{text(run["page"])}">{text(mark)}</a>')


def _flat(figures: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and short texts at any depth, by their path; lists are left out."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif isinstance(value, int | float | str) and len(str(value)) <= 60:
            yield f"{above}{name}", value


def _shared(name: str, lines: Sequence[Json]) -> list[Any]:
    """The value that all runs with this result share, as a list of one; else an empty list."""
    values = [line[name] for line in lines if name in line]
    is_plain = name not in ("run", "seconds", "error") and len(values) > 1
    return values[:1] if is_plain and all(value == values[0] for value in values) else []


def _progress(runs: Sequence[Json]) -> str:
    counts = Counter(run["status"] for run in runs)
    parts = [f"{counts['done']} of {counted(len(runs), 'run')} done"]
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    left = counts["running"] + counts["waiting"]
    return ", ".join([*parts, f"{left} to go"] if left else parts) + "."


def _found(runs: Sequence[Json]) -> str:
    known = any(run["figures"] for run in runs)
    note = "Sort by any heading." if known else "No notebook has published figures yet."
    return f'<span class="rk-note">{note}</span>'
