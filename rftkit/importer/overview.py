"""The overview of an account that is printed before the import starts, and its wording.

The names of the kinds, the shutdown dates and the counts are here, because the summaries that are
printed at the end use them too. Pure text: nothing here reads from a network.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from rftkit.importer.ledger import account_name
from rftkit.importer.origins import is_openai
from rftkit.importer.survey import KINDS, Survey
from rftkit.wording import counted

__all__ = [
    "EVALS_END",
    "counts_text",
    "day_of",
    "human_bytes",
    "not_requested",
    "overview",
    "shutdown_lines",
]

EVALS_END, JOBS_END = date(2026, 11, 30), date(2027, 1, 6)
"""When OpenAI ends the Evals product, and when it stops the creation of fine-tuning jobs."""
MOST_NAMES = 8
"""Models that are named for one date."""
NAMES = {
    "files": ("file", "files"),
    "file_bytes": ("byte in files", "bytes in files"),
    "jobs": ("job", "jobs"),
    "events": ("event", "events"),
    "checkpoints": ("checkpoint", "checkpoints"),
    "evals": ("eval", "evals"),
    "runs": ("eval run", "eval runs"),
    "output_items": ("output item", "output items"),
    "graders": ("grader", "graders"),
    "chats": ("stored chat completion", "stored chat completions"),
    "messages": ("message", "messages"),
    "vector_stores": ("vector store", "vector stores"),
    "store_files": ("file in vector stores", "files in vector stores"),
    "batches": ("batch", "batches"),
    "assistants": ("assistant", "assistants"),
    "agents": ("agent", "agents"),
    "chatkit_threads": ("ChatKit thread", "ChatKit threads"),
    "thread_items": ("item in threads", "items in threads"),
    "containers": ("container", "containers"),
    "container_files": ("file in containers", "files in containers"),
    "skills": ("skill", "skills"),
    "skill_versions": ("version of skills", "versions of skills"),
    "videos": ("video", "videos"),
    "voice_consents": ("voice consent", "voice consents"),
}
"""The singular and the plural of each kind."""
NOT_REQUESTED = (
    "responses, conversations, threads of assistants, voices and uploads (the service has no list "
    "of them), the content of files in containers, sessions of agents, fine-tuned weights (never "
    "given out), and the settings, keys and secrets of the organization"
)
"""Things that an account may hold and that no import requests."""


def overview(found: Survey, account: Mapping[str, str], num_due: int) -> str:
    """What the account holds and how much of it, before anything is fetched."""
    seen = found.counts()
    methods = Counter(f"{job.facts['method']}" for job in found.jobs)
    statuses = Counter(str(job.facts["status"]) for job in found.jobs)
    more = {
        "files": human_bytes(seen["file_bytes"]),
        "jobs": f"{_tally(methods)}; {_tally(statuses)}",
        "evals": f"{counted(seen['runs'], 'run')} with "
        + counted(seen["output_items"], "output item"),
        "graders": "different specs, found in jobs and evals",
    }
    lines = [f"{account_name(account)} holds:"]
    lines += [
        f"  {name:8}{seen[name]:>8,}  {text if seen[name] else ''}".rstrip()
        for name, text in more.items()
    ]
    lines += [f"  {NAMES[kind][1]}: {len(each):,}" for kind, each in found.others.items() if each]
    lines += shutdown_lines(found.models, account["origin"])
    lines.append(f"{num_due:,} of {len(found.objects):,} objects will be fetched.")
    return "\n".join(lines)


def not_requested(
    only: Sequence[str], since: Mapping[str, str] | None = None, unlisted: Iterable[str] = ()
) -> str:
    """What an import of these kinds does not request.

    Args:
        only: the kinds.
        since: kind -> the moment before which its objects were left out.
        unlisted: kinds of which the service has no list.
    """
    parts = []
    if left_out := [kind for kind in KINDS if kind not in only]:
        parts.append(f"{_named(left_out)} (left out by --only)")
    for moment in sorted(set((since or {}).values())):
        kinds = [kind for kind in KINDS if (since or {}).get(kind) == moment]
        what = "everything" if kinds == [kind for kind in KINDS if kind in only] else _named(kinds)
        parts.append(f"{what} created before {moment[:10]} (left out by --since)")
    text = f"Not requested: {'; '.join([*parts, NOT_REQUESTED])}."
    without = set(unlisted)
    if names := _named(kind for kind in KINDS if kind in without):
        text += f" The service has no list of {names}, so nothing of them is saved."
    return text


def _named(kinds: Iterable[str]) -> str:
    return ", ".join(NAMES[kind][1] if kind in NAMES else kind for kind in kinds)


def shutdown_lines(models: Iterable[Mapping[str, Any]], origin: str) -> list[str]:
    """A line for each shutdown date of the account's parts, the earliest first."""
    dates: dict[str, list[str]] = {}
    if is_openai(origin):
        dates[f"{EVALS_END}"] = ["evals with their runs"]
        dates[f"{JOBS_END}"] = ["creating fine-tuning jobs"]
    for model in models:
        if (end := day_of(model.get("shutdown_date"))) is not None:
            dates.setdefault(end, []).append(str(model.get("id")))
    return [
        f"Shuts down on {end}: {', '.join(names[:MOST_NAMES])}"
        + (f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else "")
        for end, names in sorted(dates.items())
    ]


def day_of(moment: Any) -> str | None:
    """A date from Unix seconds or from text that begins with one."""
    if isinstance(moment, int | float) and not isinstance(moment, bool):
        try:
            return datetime.fromtimestamp(moment, UTC).date().isoformat()
        except (OverflowError, OSError, ValueError):
            return None
    return moment[:10] if isinstance(moment, str) and moment else None


def counts_text(counts: Mapping[str, int]) -> str:
    """`2 jobs, 34 events, 1 file`; `nothing` if there is nothing."""
    text = [
        human_bytes(number) + " in files" if name == "file_bytes" else counted(number, *NAMES[name])
        for name in NAMES
        if (number := counts.get(name)) is not None
    ]
    return ", ".join(text) or "nothing"


def human_bytes(number: float) -> str:
    """`34.5 MB`."""
    if number < 1000:
        return f"{number:,.0f} bytes"
    power = min(int(math.log10(number)) // 3, 4)
    return f"{number / 1000**power:,.1f} {('', 'kB', 'MB', 'GB', 'TB')[power]}"


def _tally(counter: Counter[str]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counter.most_common())
