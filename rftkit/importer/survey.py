"""What an account holds: its lists, read before anything is fetched.

Also where grader specs come from: the service has no list of graders, so they are collected from
the jobs and evals that use them. Not here: contents, events, output items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from rftkit.errors import InputError
from rftkit.importer.dump import Dump, safe_name
from rftkit.importer.others import OTHERS
from rftkit.importer.pages import Lists, items_of
from rftkit.importer.remote import Refused, Remote
from rftkit.jsontext import digest_of

__all__ = [
    "KINDS",
    "Grader",
    "Listed",
    "Survey",
    "account_of",
    "graders_of_eval",
    "graders_of_job",
    "survey",
]

ROUTES = {
    "files": "/files",
    "jobs": "/fine_tuning/jobs",
    "evals": "/evals",
    "models": "/models",
    **{kind: other.route for kind, other in OTHERS.items()},
}
KINDS = ("files", "jobs", "evals", "graders", *OTHERS, "models")
NO_LIST = (404, 405, 410, 501)
"""Statuses of services without such a list. A list of `OTHERS` that does not exist does not count
as missing."""

_ECHOED = ("id", "grdr_id", "inactive_at")
"""Keys that an eval adds to the grader it was given."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of a list: enough to decide whether the object must be fetched."""

    kind: str
    """`files`, `jobs`, `evals`, `runs` or one of `OTHERS`."""
    id: str
    key: str
    """The object's folder in the dump: `jobs/ftjob-1`."""
    route: str
    digest: str
    """The digest of its entry in the list, to notice changes."""
    created_at: int | None
    """Unix seconds."""
    facts: dict[str, Any]
    """The few fields that the overview and the fetching need."""


@dataclass(slots=True)
class Grader:
    """One distinct grader spec."""

    spec: dict[str, Any]
    uses: list[dict[str, str]] = field(default_factory=list)
    """Where it is used: `object` (key in the dump) and `path` in its JSON."""


@dataclass(slots=True)
class Survey:
    """Everything that was selected, by kind."""

    files: list[Listed] = field(default_factory=list)
    jobs: list[Listed] = field(default_factory=list)
    evals: list[Listed] = field(default_factory=list)
    runs: list[Listed] = field(default_factory=list)
    graders: dict[str, Grader] = field(default_factory=dict)
    """Graders by the digest of the spec."""
    others: dict[str, list[Listed]] = field(default_factory=dict)
    """Other objects, by the kinds of `OTHERS`."""
    models: list[dict[str, Any]] = field(default_factory=list)
    """Models as the service lists them."""
    unlisted: list[str] = field(default_factory=list)
    """Kinds that the service does not list."""

    @property
    def objects(self) -> list[Listed]:
        """All objects that are fetched one at a time, the slow ones first."""
        runs = sorted(self.runs, key=lambda run: -run.facts["total"])
        others = [each for kind in self.others.values() for each in kind]
        return [*self.jobs, *runs, *self.evals, *self.files, *others]

    def counts(self) -> dict[str, int]:
        """The number of objects, as far as the lists show it."""
        return {
            "files": len(self.files),
            "file_bytes": sum(file.facts["bytes"] for file in self.files),
            "jobs": len(self.jobs),
            "evals": len(self.evals),
            "runs": len(self.runs),
            "output_items": sum(run.facts["total"] for run in self.runs),
            "graders": len(self.graders),
            **{kind: len(found) for kind, found in self.others.items() if found},
            **({"models": len(self.models)} if self.models else {}),
        }


def account_of(remote: Remote) -> dict[str, str]:
    """Whose account answers: origin, organisation, project; never the key. One to three requests.

    Raises:
        InputError: the key is refused, or the URL is not such a service.
    """
    found, refusals = {"origin": remote.origin.base_url}, []
    for kind in ("jobs", "files", "evals"):
        try:
            answer = remote.get(ROUTES[kind], limit=1)
            entries = items_of(answer.data)
        except Refused as refused:
            refusals.append(refused)
            if refused.status is None:
                break
            continue
        for name in ("organization", "project"):
            if value := answer.headers.get(f"openai-{name}"):
                found[name] = value
        if kind == "jobs" and entries and isinstance(entries[0].get("organization_id"), str):
            found["organization_id"] = entries[0]["organization_id"]
        return found
    if any(refused.status in (401, 403) for refused in refusals):
        return found  # the key is valid but may not read these lists
    raise InputError(
        f"{remote.origin.base_url} does not answer like this API ({refusals[0].reason}); check "
        "the URL, it usually ends in /v1"
    )


def survey(
    lists: Lists,
    *,
    only: Iterable[str],
    since: float | None,
    dump: Dump | None,
    recording: Callable[[str], AbstractContextManager[None]],
    pool: Executor,
) -> Survey:
    """Read the lists of the selected kinds.

    Args:
        lists: Of the account.
        only: Kinds out of `KINDS`.
        since: Objects created before this moment (Unix seconds) are left out; an eval stays if
            one of its runs does.
        dump: Where the pages are kept; None keeps none.
        recording: Records that a list cannot be fetched, by its place in the dump.
        pool: Reads the runs of several evals at a time.
    """
    wanted, found = set(only), Survey()

    def read(kind: str, route: str, place: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        with recording(f"lists/{place}"):
            entries.extend(_read_list(lists, kind, route, place, dump))
        return entries

    def read_other(kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        with recording(f"lists/{kind}"):
            try:
                entries.extend(_read_list(lists, kind, ROUTES[kind], kind, dump))
            except Refused as refused:
                if refused.status not in NO_LIST and refused.code != "unsupported":
                    raise
                found.unlisted.append(kind)
        return entries

    def read_runs(eval_: Listed) -> list[Listed]:
        entries = read("runs", f"{eval_.route}/runs", f"{eval_.key}/runs")
        return [_listed_run(entry, eval_) for entry in entries]

    if "files" in wanted:
        found.files = [_listed_file(each) for each in read("files", ROUTES["files"], "files")]
    if wanted & {"jobs", "graders"}:
        for entry in read("jobs", ROUTES["jobs"], "jobs"):
            job = _listed_job(entry)
            found.jobs.append(job)
            if _is_recent(job, since):
                _collect(found.graders, graders_of_job(entry), job.key)
    if wanted & {"evals", "graders"}:
        for entry in read("evals", ROUTES["evals"], "evals"):
            eval_ = _listed("evals", "evals", ROUTES["evals"], entry, {})
            found.evals.append(eval_)
            _collect(found.graders, graders_of_eval(entry), eval_.key)
    for kind in OTHERS:
        if kind in wanted:
            found.others[kind] = [
                _listed(kind, kind, ROUTES[kind], entry, {}) for entry in read_other(kind)
            ]
    if "models" in wanted:
        found.models = read_other("models")
    if "evals" in wanted:
        found.runs = [run for runs in pool.map(read_runs, found.evals) for run in runs]
    _select(found, wanted, since)
    return found


def _read_list(
    lists: Lists, kind: str, route: str, place: str, dump: Dump | None
) -> Iterator[dict[str, Any]]:
    folder, seen, page = f"lists/{place}", set(), 0
    for page, answer in enumerate(lists.walk(kind, route, known=set()), start=1):
        if dump is not None:
            dump.write(f"{folder}/1-{page:06}.json", answer.body)
        for item in items_of(answer.data):
            if isinstance(item.get("id"), str) and item["id"] not in seen:
                seen.add(item["id"])
                yield item
    if dump is not None:
        dump.drop_pages(folder, after=page)


def _listed(
    kind: str, place: str, route: str, entry: dict[str, Any], facts: dict[str, Any]
) -> Listed:
    created_at = entry.get("created_at", entry.get("created"))
    return Listed(
        kind=kind,
        id=entry["id"],
        key=f"{place}/{safe_name(entry['id'])}",
        route=f"{route}/{quote(entry['id'], safe='')}",
        digest=digest_of(entry),
        created_at=created_at if isinstance(created_at, int) else None,
        facts=facts,
    )


def _listed_file(entry: dict[str, Any]) -> Listed:
    size = entry.get("bytes")
    facts = {"bytes": size if isinstance(size, int) else 0}
    return _listed("files", "files", ROUTES["files"], entry, facts)


def _named_file(file_id: str) -> Listed:
    """A file that a job names but the list does not show."""
    return _listed_file({"id": file_id})


def _listed_job(entry: dict[str, Any]) -> Listed:
    facts = {
        "status": entry.get("status"),
        "method": _map(entry.get("method")).get("type") or "supervised",
        "result_files": _texts(entry.get("result_files")),
        "data_files": _texts([entry.get("training_file"), entry.get("validation_file")]),
    }
    return _listed("jobs", "jobs", ROUTES["jobs"], entry, facts)


def _listed_run(entry: dict[str, Any], eval_: Listed) -> Listed:
    total = _map(entry.get("result_counts")).get("total")
    facts = {"total": total if isinstance(total, int) else 0}
    return _listed("runs", f"{eval_.key}/runs", f"{eval_.route}/runs", entry, facts)


def _is_recent(listed: Listed, since: float | None) -> bool:
    return since is None or listed.created_at is None or listed.created_at >= since


def _select(found: Survey, wanted: set[str], since: float | None) -> None:
    """Leave out what is too old or only served to find graders; add files that jobs name."""
    found.files = [each for each in found.files if _is_recent(each, since)]
    found.jobs = [each for each in found.jobs if _is_recent(each, since)]
    found.runs = [each for each in found.runs if _is_recent(each, since)]
    found.others = {
        kind: [each for each in several if _is_recent(each, since)]
        for kind, several in found.others.items()
    }
    with_runs = {run.key.split("/runs/")[0] for run in found.runs}
    found.evals = [e for e in found.evals if e.key in with_runs or _is_recent(e, since)]
    used = {each.key for each in (*found.jobs, *found.evals)}
    for digest, grader in list(found.graders.items()):
        grader.uses = [use for use in grader.uses if use["object"] in used]
        if not grader.uses or "graders" not in wanted:
            del found.graders[digest]
    if "jobs" not in wanted:
        found.jobs = []
    if "evals" not in wanted:
        found.evals = []
    listed = {file.id for file in found.files}
    for job in found.jobs:
        data_files = job.facts["data_files"] if "files" in wanted else []
        for name in job.facts["result_files"] + data_files:
            if name not in listed:
                listed.add(name)
                found.files.append(_named_file(name))


def _collect(
    graders: dict[str, Grader], specs: Iterable[tuple[str, dict[str, Any]]], key: str
) -> None:
    for path, spec in specs:
        grader = graders.setdefault(digest_of(spec), Grader(spec))
        grader.uses.append({"object": key, "path": path})


def graders_of_job(job: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place in the job's JSON -> grader."""
    for name, settings in _map(job.get("method")).items():
        grader = _map(settings).get("grader")
        if isinstance(grader, dict):
            yield f"method.{name}.grader", grader


def graders_of_eval(eval_: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place in the eval's JSON -> grader, without what the eval adds to it."""
    criteria = eval_.get("testing_criteria")
    for index, grader in enumerate(criteria if isinstance(criteria, list) else ()):
        if isinstance(grader, dict):
            spec = {name: value for name, value in grader.items() if name not in _ECHOED}
            yield f"testing_criteria[{index}]", spec


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
