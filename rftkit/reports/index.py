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
from rftkit.views.markup import html, join, text, wrap
from rftkit.wording import counted

__all__ = ["best_setting", "index_page"]

Json = dict[str, Any]
_MARKS = {"done": "report", "failed": "✗ failed", "running": "… running", "waiting": "waiting"}


def index_page(title: str, runs: Sequence[Json], comparison: str | None, verdict: str = "") -> str:
    """One HTML document over the runs of a sweep.

    Args:
        title: The title of the sweep.
        runs: The runs as in the state of the sweep.
        comparison: File name of the page that compares all runs.
        verdict: What that page says of which setting won, with its interval; without it the means
            of the published figures are compared.
    """
    lines = [_line(run) for run in runs]
    names = list(dict.fromkeys(name for line in lines for name in line))
    common = {name: shared[0] for name in names if (shared := _shared(name, lines))}
    columns = [name for name in names if name not in common]
    link = html(' · <a href="{}">All runs compared</a>', comparison) if comparison else Html()
    parts = [
        html("<h1>Sweep of {}</h1>", title),
        wrap(
            html(
                '<p class="rk-verdict">{} {}</p>{}{}',
                verdict or best_setting(runs),
                _progress(runs),
                _found(runs),
                link,
            )
        ),
        table(lines, columns, noun="run", page=100, max_bytes=2_000_000),
        Html('<h2 id="same">The same in every run</h2>') + keyvalues(common) if common else Html(),
    ]
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return page(
        f"Sweep of {title}", join(parts), foot=f"Made with rftkit {version('rftkit')}, {made}."
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
        return text(mark)
    tone = Html(' class="rk-bad"') if run["status"] == "failed" else Html()
    return html('<a{} style="white-space:nowrap" href="{}">{}</a>', tone, run["page"], mark)


def _flat(figures: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and short texts at any depth, by their path; lists are left out."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif isinstance(value, int | float | str) and 0 < len(str(value)) <= 60:
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


MEASURES = {
    "test.final": "reward on the test rows",
    "valid.final": "final validation reward",
    "valid.best": "best validation reward",
}
"""Published figures that decide which setting won, the most important first."""


def best_setting(runs: Sequence[Json]) -> str:
    """Which setting has the highest mean, by how much, and whether its seeds agree; or nothing.

    Settings are what the runs differ in, except `seed`. No test is made here: the page that
    compares all runs row by row says how certain it is.
    """
    done = [(run["settings"], dict(_flat(run["figures"]))) for run in runs if run["figures"]]
    measure = next((m for m in MEASURES if done and all(_has(m, f) for _, f in done)), None)
    if measure is None:
        return ""
    groups: dict[str, dict[Any, float]] = {}
    for settings, figures in done:
        rest = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "seed")
        groups.setdefault(rest, {})[settings.get("seed")] = float(figures[measure])
    means = {name: sum(by_seed.values()) / len(by_seed) for name, by_seed in groups.items()}
    first, *others = sorted(means, key=lambda name: -means[name])
    if not others:
        values = list(groups[first].values())
        if len(values) < 2:
            return ""
        spread = f"{min(values):.3f} to {max(values):.3f}"
        return f"{MEASURES[measure].capitalize()}: {means[first]:.3f}, {spread} over the seeds."
    second = others[0]
    if round(means[first], 3) == round(means[second], 3):
        return f"{first} and {second} are level: {MEASURES[measure]} {means[first]:.3f}."
    said = f"{first} is best: {MEASURES[measure]} {means[first]:.3f}"
    said += f", {means[first] - means[second]:.3f} above {second}"
    shared = [seed for seed in groups[first] if seed in groups[second]]
    ahead = sum(groups[first][seed] > groups[second][seed] for seed in shared)
    if len(shared) > 1:
        agree = "all" if ahead == len(shared) else f"{ahead} of {len(shared)}"
        said += f"; {agree} seeds agree" if ahead else "; no seed agrees"
    return f"{said}."


def _has(measure: str, figures: Json) -> bool:
    return isinstance(figures.get(measure), int | float)


def _found(runs: Sequence[Json]) -> Html:
    known = any(run["figures"] for run in runs)
    note = "Sort by any heading." if known else "No notebook has published figures yet."
    return html('<span class="rk-note">{}</span>', note)
