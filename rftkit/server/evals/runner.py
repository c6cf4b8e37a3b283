"""The eval runner: sample the model if the data source requires it, grade, and store the items.

Each run is one task on the server's event loop. Each finished item is stored at once, so after a
kill the run resumes with the rest. `asking` has the model's answers; `api.eval_runs` checks
requests; `training.eval_records` writes the runs of jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from rftkit import graders
from rftkit.errors import InputError, RftkitError
from rftkit.graders import Sample
from rftkit.rows import BOM, parse_object
from rftkit.server.evals.asking import Asking
from rftkit.server.evals.episodes import Diary
from rftkit.server.evals.stored_answers import stored_entries
from rftkit.server.inference.backlog import Backlog
from rftkit.server.inference.judge import embedding_call
from rftkit.server.inference.platform import Platform
from rftkit.server.store.records import Eval, EvalRun, OutputItem
from rftkit.server.store.store import Store
from rftkit.server.training.eval_records import (
    GradedSample,
    finish_reason,
    item_from,
    outcome_of,
    results_from,
    tally,
)
from rftkit.tools import ToolFailed
from rftkit.wholefile import temporary_problem

__all__ = ["EvalRunner", "entries_of"]

log = logging.getLogger("rftkit.server")

Json = dict[str, Any]

AT_ONCE = 16
"""Items of a run that are processed at the same time; the worker batches their sampling."""
PAGE = 1000
CANCEL_SECONDS = 0.5
"""How often a run polls for a cancel."""


class EvalRunner(Backlog[EvalRun]):
    """Processes unfinished runs, one after the other, oldest first."""

    def __init__(self, platform: Platform, complete: graders.CompletionCall) -> None:
        """`complete` calls the judge of model graders."""
        super().__init__(platform, "eval runs", platform.store.unfinished_runs, self._run)
        self._complete = complete
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="eval")

    async def stop(self) -> None:
        """Stop; the run in progress stays unfinished."""
        await super().stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, run: EvalRun) -> None:
        store, home = self._platform.store, self._platform.home
        diary = await self._call(Diary, home / "runs" / f"{run.id}.jsonl" if home else None)
        try:
            await self._call(partial(store.update_run, run.id, status="in_progress"))
            result = await _Pass(self._platform, run, self._complete, self._call, diary).run()
            await self._call(partial(store.update_run, run.id, status="completed", **result))
        except ToolFailed as error:
            await self._call(self._fail, run, "tool_failed", str(error))
        except Exception as error:
            if temporary_problem(error):
                raise  # it is tried again
            if isinstance(error, RftkitError):
                await self._call(self._fail, run, "invalid_run", str(error))
            else:
                log.exception("eval run %s failed", run.id)
                why = f"{type(error).__name__}: {error}"
                await self._call(self._fail, run, "server_error", why)
        await self._call(diary.close)

    def _fail(self, run: EvalRun, code: str, message: str) -> None:
        with contextlib.suppress(RftkitError):  # the run may have been deleted
            error = {"code": code, "message": message}
            self._platform.store.update_run(run.id, status="failed", error=error)

    async def _call(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


class _Pass:
    """One run, from its data source to its counts."""

    def __init__(
        self,
        platform: Platform,
        run: EvalRun,
        complete: graders.CompletionCall,
        call: Any,
        diary: Diary,
    ) -> None:
        self._platform, self._run, self._call = platform, run, call
        self._eval: Eval = platform.store.eval(run.eval_id)
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._counts: Counter[str] = Counter()
        self._shown: Json = {}
        samples = run.model is not None and run.data_source["type"] != "jsonl"
        self._asking = Asking(platform, run, call, diary, self._is_running) if samples else None
        self._reads_sample = any(map(graders.reads_sample, self._eval.testing_criteria))
        self._compiled = [
            graders.compile_grader(
                {key: value for key, value in spec.items() if key != "id"},
                purpose="eval",
                complete=complete,
                embed=embedding_call(platform),
            )
            for spec in self._eval.testing_criteria
        ]

    async def run(self) -> Json:
        """Process every item that is not stored yet; return the run's totals."""
        store = self._platform.store
        try:
            if self._asking is not None:
                await self._call(self._asking.open)
            entries = await self._call(list, entries_of(store, self._run))
            there = await self._call(_all_items, store, self._run.id)
            done = {item.datasource_item_id for item in there}
            self._counts.update(map(outcome_of, there))
            todo = [pair for pair in entries if pair[0] not in done]
            work = _all([self._one(row, entry) for row, entry in todo])
            await self._until_canceled(asyncio.ensure_future(work))
            items = await self._call(_all_items, store, self._run.id)
        finally:
            await asyncio.to_thread(self._close)
        return tally(self._eval.testing_criteria, items)

    async def _until_canceled(self, work: asyncio.Future[Any]) -> None:
        """Wait for the work; if the run is canceled, drop unfinished chats and grades."""
        try:
            while not (await asyncio.wait({work}, timeout=CANCEL_SECONDS))[0]:
                # Not `_call`: grades that hang may occupy all threads of the runs.
                await asyncio.to_thread(self._show_counts)
                if not await asyncio.to_thread(self._is_running):
                    await asyncio.to_thread(self._close)
                    return
            work.result()
        finally:
            work.cancel()

    def _close(self) -> None:
        if self._asking is not None:
            self._asking.close()
        for grader in self._compiled:
            grader.close(now=True)

    async def _one(self, row: int, entry: Json) -> None:
        async with self._gate:
            store = self._platform.store
            if not await self._call(self._is_running):
                return
            sample: Sample | None
            facts: Json
            if self._asking is None:
                sample, facts = _given(entry, is_read=self._reads_sample)
            else:
                sample, facts = await self._asking.answer(row, entry["item"])
                if sample is None and not await self._call(self._is_running):
                    return
            results = []
            if sample is not None:
                results = await self._call(self._grade, sample, entry["item"])
            graded = GradedSample(row=row, item=entry["item"], results=results, **facts)
            item = item_from(self._run, graded)
            await self._call(store.add_items, [item])
            self._counts[outcome_of(item)] += 1

    def _show_counts(self) -> None:
        """Let clients see the progress of the run."""
        counts = {name: self._counts[name] for name in ("errored", "failed", "passed")}
        shown = {"total": sum(counts.values()), **counts}
        if shown != self._shown:
            self._platform.store.update_run(self._run.id, result_counts=shown)
            self._shown = shown

    def _is_running(self) -> bool:
        """Return whether the run has not been canceled."""
        return self._platform.store.run(self._run.id).status == "in_progress"

    def _grade(self, sample: Sample, item: Json) -> list[Json]:
        return [
            result
            for spec, grader in zip(self._eval.testing_criteria, self._compiled, strict=True)
            for result in results_from([spec], grader.grade(sample, item))
        ]


def entries_of(store: Store, run: EvalRun) -> Iterator[tuple[int, Json]]:
    """Yield number and `{item, sample?}` of every row; a line without `item` is the item.

    Its `sample`, if it has one, is the answer to grade, and stays a key of the item.

    Raises:
        InputError: with the line that is not valid.
        NotFoundError: when the file does not exist.
    """
    source = run.data_source["source"]
    if source["type"] == "file_content":
        yield from enumerate(source["content"])
    elif source["type"] == "file_id":
        name = store.file(source["id"]).filename
        with store.file_path(source["id"]).open("rb") as lines:
            filled = ((n, line) for n, line in enumerate(lines, start=1) if line.strip())
            for row, (number, line) in enumerate(filled):
                yield row, _entry(line, name, number)
    else:
        yield from stored_entries(store, run)


def _entry(line: bytes, name: str, number: int) -> Json:
    raw = line.removeprefix(BOM) if number == 1 else line
    entry = parse_object(raw, line=number, path=name)
    if isinstance(entry.get("item"), dict):
        return entry
    return {"item": entry, **({"sample": entry["sample"]} if "sample" in entry else {})}


def _given(entry: Json, *, is_read: bool) -> tuple[Sample | None, Json]:
    """Return the row's own answer, or None and what is wrong with it.

    When no criterion reads the sample (`is_read`), a row without an answer is graded as well.
    """
    try:
        sample = graders.given_sample(entry.get("sample"))
    except InputError as error:
        if not is_read:
            return Sample(output_text=""), {}
        found = error.message if "sample" in entry else "the row has no `sample` to grade"
        return None, {"error": {"code": "invalid_sample", "message": found}}
    calls = list(sample.output_tools)
    facts: Json = {"text": sample.output_text, "tool_calls": calls}
    facts["finish_reason"] = finish_reason("length" if sample.truncated else "stop", calls)
    return sample, facts | entry.get("facts", {})


async def _all(coroutines: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all concurrently; if one fails, stop the others and then raise its error."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _all_items(store: Store, run_id: str) -> list[OutputItem]:
    items: list[OutputItem] = []
    more = True
    while more:
        after = items[-1].id if items else None
        page, more = store.items(run_id, after=after, limit=PAGE)
        items += page
    return items
