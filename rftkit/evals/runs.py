"""Read runs from a service or from the home folder, as `Samples`.

`fetch(client, "ftjob-…")` reads every validation of a job, `"eval_…"` every run of an eval, and
`"evalrun_…"` one run. Finished runs are saved in the home folder and requested once. Output items
are read as raw responses of the `openai` client, because its objects cost more than the network.
Not here: the shape of items (`items`), files (`saved_runs`), dumps (`dump_runs`), and new runs
(`local_runs`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from rftkit.errors import InputError, NotFoundError, PlatformError
from rftkit.evals import saved_runs
from rftkit.evals.grading import digest_of
from rftkit.evals.items import Combine, Record, combine, read_items, settle
from rftkit.evals.samples import Run, Samples
from rftkit.hyperparameters import KNOBS
from rftkit.jsontext import parse_json
from rftkit.wording import the_only

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Wanted", "fetch", "find_runs", "kept", "together", "wanted_run"]

Json = dict[str, Any]

PAGES = (100, 20)
"""Items per page: the first that a service accepts."""
AT_ONCE = 4
"""Runs that are read at the same time."""
INDEX_SECONDS = 30.0
"""Services list a finished run's items a little late: so long is waited for the last of them."""
MOST_EVALS = 1000
"""Evals among which a shortened id is looked for."""
SHORT = {
    "learning_rate_multiplier": "lr ×",
    "compute_multiplier": "compute ×",
    "n_epochs": "epochs",
}
"""Hyperparameter -> what a label calls it; its value follows."""
_STEP = re.compile(r"Step (\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A run that was found and not yet read."""

    run: Run
    num_items: int | None
    """How many output items it should have; None when the service does not say."""
    combine: Combine | None = None
    """How scores of several graders make its reward."""
    response_format: Mapping[str, Any] | None = None
    """The response format of its answers."""


def fetch(
    client: OpenAI,
    *names: str,
    grader: Mapping[str, Any] | None = None,
    progress: bool = False,
    fresh: bool = False,
) -> Samples:
    """The samples of runs.

    Args:
        client: From `rftkit.connect()`, or any `openai.OpenAI`.
        names: `ftjob-…`: all its validations; `eval_…`: all its runs; `evalrun_…`: that run, with
            its eval in front where the service does not show it in a list (`eval_…/evalrun_…`);
            `localrun_…`: one that was made here. The first characters of an id are enough, and the
            suffix of a job.
        grader: How scores of several graders make the reward; default that of the job.
        progress: Show a bar on stderr.
        fresh: Read again what is kept.

    Raises:
        InputError: a name is none of these, or begins several ids.
        NotFoundError: there is no such job, eval or run.
    """
    rule = combine(grader) if grader else None
    found = [each for name in names for each in find_runs(client, name)]
    wanted = list({each.run.id: each for each in reversed(found)}.values())[::-1]
    if rule:
        wanted = [replace(each, combine=rule) for each in wanted]
    bar = _bar(sum(each.num_items or 0 for each in wanted)) if progress else None
    try:
        records = list(_read_all(client, wanted, fresh, bar))
    finally:
        if bar is not None:
            bar.close()
    return saved_runs.samples_of(records)


def find_runs(client: OpenAI, name: str) -> list[Wanted]:
    """The runs of a name, in the order of the service; see `fetch`.

    Raises:
        InputError: the name is none of those.
        NotFoundError: there is no such job, eval or run.
    """
    if name.startswith(saved_runs.LOCAL_PREFIX):
        return [Wanted(_kept(name).run, None)]
    eval_id, _, run_id = name.rpartition("/")
    if run_id.startswith("evalrun_"):
        return [_find_run(client, eval_id or None, run_id)]
    if name.startswith("eval_"):
        return _runs_of_eval_named(client, name)
    return _runs_of_job(client, _job_of_name(client, name))


def _job_of_name(client: OpenAI, name: str) -> str:
    """The id of a job, by its first characters or its suffix."""
    from rftkit.jobs.follow import PREFIX, find

    try:
        return find(client, name)
    except NotFoundError:
        if name.startswith(PREFIX):
            raise
    raise InputError(
        f"{name!r} names no runs; expected a job (ftjob-… or its suffix), an eval (eval_…), a run "
        f"(evalrun_…) or one made here ({saved_runs.LOCAL_PREFIX}…)"
    )


def _runs_of_eval_named(client: OpenAI, begin: str) -> list[Wanted]:
    """The runs of an eval, by its id or the first characters of it."""
    import openai

    try:
        return _runs_of_eval(client, begin)
    except openai.NotFoundError:
        listed = islice(client.evals.list(limit=100, order="desc"), MOST_EVALS)
        only = the_only([each.id for each in listed if each.id.startswith(begin)], begin)
        if only is None:
            raise
    return _runs_of_eval(client, only)


def kept(*run_ids: str) -> Samples:
    """Runs that are kept in the home, without asking any service; default those made here.

    Raises:
        NotFoundError: one is not kept.
    """
    records = [_kept(each) for each in run_ids] if run_ids else list(saved_runs.kept_runs())
    return saved_runs.samples_of(records)


def together(*several: Samples) -> Samples:
    """Samples of different origins side by side."""
    return saved_runs.samples_of(
        [saved_runs.record_of(each, label) for each in several for label in each.labels]
    )


def _kept(run_id: str) -> Record:
    record = saved_runs.find(run_id)
    if record is None:
        ids = [each.run.id for each in saved_runs.kept_runs()]
        only = the_only([each for each in ids if each.startswith(run_id)], run_id)
        record = saved_runs.find(only) if only else None
    if record is None:
        raise NotFoundError(f"the home holds no run {run_id}; list them: rftkit eval list")
    return record


def _runs_of_job(client: OpenAI, job_id: str) -> list[Wanted]:
    job = _answer(client.fine_tuning.jobs.with_raw_response.retrieve(job_id))
    eval_id = job.get("eval_id") or _eval_of_job(client, job_id)
    if eval_id is None:
        raise NotFoundError(f"{job_id} has no eval yet: it appears with the first validation")
    grading = (job.get("method") or {}).get("reinforcement") or job.get("measured_by") or {}
    grader = grading.get("grader") or {}
    return [
        replace(
            each,
            run=replace(
                each.run,
                job_id=job_id,
                job_facts=_facts(job, grader),
                model=each.run.model or job.get("model"),
                grader=grader.get("name"),
                grader_digest=digest_of(grader) if grader else None,
            ),
            combine=combine(grader),
            response_format=grading.get("response_format"),
        )
        for each in _runs_of_eval(client, eval_id)
        if each.run.step is not None
    ]


def _facts(job: Json, grader: Json) -> Json:
    """What distinguishes a job from others, by the names that labels use."""
    method = job.get("method") or {}
    given = (method.get(method.get("type")) or {}).get("hyperparameters") or {}
    settings = {SHORT.get(name, name): value for name, value in given.items() if value != "auto"}
    suffix = {"suffix": job["user_provided_suffix"]} if job.get("user_provided_suffix") else {}
    metadata = {name: text for name, text in (job.get("metadata") or {}).items() if name in KNOBS}
    named = {"grader": grader["name"]} if grader.get("name") else {}
    facts = suffix | named | settings | metadata
    return facts | {"seed": job.get("seed"), "model": job.get("model")}


def _eval_of_job(client: OpenAI, job_id: str) -> str | None:
    """The eval that names the job, for services whose jobs do not name their eval."""
    names = {job_id, job_id.removeprefix("ftjob-")}
    for each in client.evals.list(limit=100):
        names_of_eval = {
            (each.metadata or {}).get("fine_tuning_job_id"),
            *(each.name or "").split(),
        }
        if names & names_of_eval:
            return each.id
    return None


def _runs_of_eval(client: OpenAI, eval_id: str) -> list[Wanted]:
    found: list[Json] = []
    page: Json = {"has_more": True}
    while page.get("has_more"):
        after = {"after": found[-1]["id"]} if found else {}
        raw = client.evals.runs.with_raw_response.list(eval_id, limit=100, order="asc", **after)
        page = _answer(raw)
        if not page["data"]:
            break
        found += page["data"]
    return [wanted_run(run, _source(client)) for run in found]


def _find_run(client: OpenAI, eval_id: str | None, run_id: str) -> Wanted:
    if eval_id is None:
        known = saved_runs.load(run_id, _source(client))
        if known is not None:
            return Wanted(known.run, len(known.columns["row"]))
        like: dict[str, Wanted] = {}
        for each in client.evals.list(limit=100, order="desc"):
            for found in _runs_of_eval(client, each.id):
                if found.run.id == run_id:
                    return found
                if found.run.id.startswith(run_id):
                    like[found.run.id] = found
        if only := the_only(list(like), run_id):
            return like[only]
        raise NotFoundError(f"no eval of {_source(client)} has a run {run_id}")
    raw = client.evals.runs.with_raw_response.retrieve(run_id, eval_id=eval_id)
    return wanted_run(_answer(raw), _source(client))


def wanted_run(wire: Json, source: str) -> Wanted:
    """A run as a service lists it."""
    name = wire.get("name") or wire.get("model") or wire["id"]
    step = _STEP.fullmatch(name.strip())
    run = Run(
        label=f"Step {int(step[1])}" if step else name,
        id=wire["id"],
        step=int(step[1]) if step else None,
        model=wire.get("model"),
        job_id=(wire.get("metadata") or {}).get("fine_tuning_job_id"),
        eval_id=wire.get("eval_id"),
        created_at=wire.get("created_at"),
        source=source,
        status=wire.get("status") or "completed",
    )
    return Wanted(run, (wire.get("result_counts") or {}).get("total"))


def _read_all(client: OpenAI, wanted: list[Wanted], fresh: bool, bar: Any) -> Iterator[Record]:
    """Records in order; several runs are read at once."""

    def one(each: Wanted) -> Record:
        known = None if fresh else saved_runs.load(each.run.id, each.run.source)
        if each.run.id.startswith(saved_runs.LOCAL_PREFIX):
            known = known or _kept(each.run.id)
        if known is not None:
            if bar is not None:
                bar.update(len(known.columns["row"]))
        else:
            known = _read(client, each, bar.update if bar is not None else lambda count: None)
        # labels and jobs have their present names, not those of the saved table
        return settle(replace(known, run=each.run), each.combine)

    if len(wanted) <= 1:
        yield from map(one, wanted)
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(one, wanted)


def _read(client: OpenAI, wanted: Wanted, count: Callable[[int], None]) -> Record:
    run, deadline = wanted.run, time.monotonic() + INDEX_SECONDS
    items = [item for page in _pages(client, run, count) for item in page]
    is_final = run.status in saved_runs.FINAL
    while is_final and len(items) < (wanted.num_items or 0) and time.monotonic() < deadline:
        time.sleep(2.0)
        items += [item for page in _pages(client, run, count, items) for item in page]
    record = read_items(run, items, wanted.response_format)
    if wanted.num_items is not None and len(items) < wanted.num_items and is_final:
        record.notes.append(
            f"The service lists {len(items):,} of the {wanted.num_items:,} items of {run.label}."
        )
    elif is_final:
        saved_runs.save(record)
    return record


def _pages(
    client: OpenAI, run: Run, count: Callable[[int], None], known: Iterable[Json] = ()
) -> Iterator[list[Json]]:
    """Output items page by page, after those that are known."""
    from openai import BadRequestError

    assert run.eval_id is not None
    last = next(reversed(list(known)), None)
    sizes = list(PAGES)
    while True:
        after = {"after": last["id"]} if last else {}
        try:
            raw = client.evals.runs.output_items.with_raw_response.list(
                run.id, eval_id=run.eval_id, limit=sizes[0], order="asc", **after
            )
        except BadRequestError:
            if len(sizes) == 1:
                raise
            sizes.pop(0)
            continue
        page = _answer(raw)
        items: list[Json] = page["data"]
        if not items or (last and items[-1]["id"] == last["id"]):
            return
        last = items[-1]
        count(len(items))
        yield items
        if not page.get("has_more"):
            return


def _answer(raw: Any) -> Any:
    """The JSON object that a service answered.

    Raises:
        PlatformError: It answered something else.
    """
    try:
        found = parse_json(raw.content)
    except ValueError as error:
        found, why = None, str(error)
    else:
        why = f"a JSON {type(found).__name__}"
    if not isinstance(found, dict):
        raise PlatformError(
            f"{raw.http_request.url} answered something that is not a JSON object ({why}); is it a "
            "service with OpenAI's routes?"
        )
    return found


def _source(client: OpenAI) -> str:
    return str(client.base_url).rstrip("/")


def _bar(total: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, unit=" items", desc="fetching")
