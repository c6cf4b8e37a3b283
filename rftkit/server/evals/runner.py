"""The eval runner: sample the model if the data source requires it, grade, and store the items.

Each run is one task on the server's event loop. Each finished item is stored at once, so after a
kill the run resumes with the rest. `api.eval_runs` checks requests; `training.eval_records` writes
the runs of jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from rftkit import graders
from rftkit.errors import InputError, RequestError, RftkitError
from rftkit.graders import Sample
from rftkit.graders.outcome import Fault
from rftkit.graders.template import compile_template, look_up, paths
from rftkit.rows import BOM, parse_object
from rftkit.server.evals.stored_answers import stored_entries
from rftkit.server.inference.backlog import Backlog
from rftkit.server.inference.body import check_messages, kind_of
from rftkit.server.inference.chat_request import ChatBody, chat_request
from rftkit.server.inference.judge import embedding_call
from rftkit.server.inference.platform import Platform
from rftkit.server.inference.response_items import chat_tools, response_format_from
from rftkit.server.store.records import Eval, EvalRun, OutputItem
from rftkit.server.store.store import Store
from rftkit.server.training.eval_records import (
    GradedSample,
    item_from,
    outcome_of,
    results_from,
    tally,
)
from rftkit.wholefile import temporary_problem

__all__ = ["EvalRunner", "chat_options", "entries_of", "messages_for"]

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
        store = self._platform.store
        try:
            await self._call(partial(store.update_run, run.id, status="in_progress"))
            result = await _Pass(self._platform, run, self._complete, self._call).run()
            await self._call(partial(store.update_run, run.id, status="completed", **result))
        except Exception as error:
            if temporary_problem(error):
                raise  # it is tried again
            if isinstance(error, RftkitError):
                await self._call(self._fail, run, "invalid_run", str(error))
                return
            log.exception("eval run %s failed", run.id)
            await self._call(self._fail, run, "server_error", f"{type(error).__name__}: {error}")

    def _fail(self, run: EvalRun, code: str, message: str) -> None:
        with contextlib.suppress(RftkitError):  # the run may have been deleted
            error = {"code": code, "message": message}
            self._platform.store.update_run(run.id, status="failed", error=error)

    async def _call(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


class _Pass:
    """One run, from its data source to its counts."""

    def __init__(
        self, platform: Platform, run: EvalRun, complete: graders.CompletionCall, call: Any
    ) -> None:
        self._platform, self._run, self._call = platform, run, call
        self._eval: Eval = platform.store.eval(run.eval_id)
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._counts: Counter[str] = Counter()
        self._shown: Json = {}
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
                if not await asyncio.to_thread(self._is_going):
                    await asyncio.to_thread(self._close)
                    return
            work.result()
        finally:
            work.cancel()

    def _close(self) -> None:
        for grader in self._compiled:
            grader.close(now=True)

    async def _one(self, row: int, entry: Json) -> None:
        async with self._gate:
            store = self._platform.store
            if not await self._call(self._is_going):
                return
            sample: Sample | None
            facts: Json
            if self._run.model is None or self._run.data_source["type"] == "jsonl":
                sample, facts = _given(entry, is_read=self._reads_sample)
            else:
                sample, facts = await self._ask(entry["item"])
                if sample is None and not await self._call(self._is_going):
                    return
            results = []
            if sample is not None:
                results = await self._call(self._grade, sample, entry["item"])
            graded = GradedSample(row=row, item=entry["item"], results=results, **facts)
            item = item_from(self._run, graded)
            await self._call(store.add_items, [item])
            self._counts[outcome_of(item)] += 1

    def _show_counts(self) -> None:
        """Let clients see how far the run is."""
        counts = {name: self._counts[name] for name in ("errored", "failed", "passed")}
        shown = {"total": sum(counts.values()), **counts}
        if shown != self._shown:
            self._platform.store.update_run(self._run.id, result_counts=shown)
            self._shown = shown

    def _is_going(self) -> bool:
        """Return whether the run has not been canceled."""
        return self._platform.store.run(self._run.id).status == "in_progress"

    def _grade(self, sample: Sample, item: Json) -> list[Json]:
        return [
            result
            for spec, grader in zip(self._eval.testing_criteria, self._compiled, strict=True)
            for result in results_from([spec], grader.grade(sample, item))
        ]

    async def _ask(self, item: Json) -> tuple[Sample | None, Json]:
        """Return the model's answer, or None and the reason."""
        source = self._run.data_source
        sampling = {k: v for k, v in (source.get("sampling_params") or {}).items() if v is not None}
        facts: Json = {"model": self._run.model, "sampling": sampling}
        try:
            facts["input"] = messages_for(source, item)
            check_messages(facts["input"])
            body = ChatBody.model_validate(
                {
                    **chat_options(sampling),
                    "model": self._run.model,
                    "messages": facts["input"],
                    "metadata": self._run.metadata,
                }
            )
            asked = await self._call(chat_request, self._platform, body)
            done = await self._platform.complete_surely(asked, lambda _: self._is_going())
        except (RftkitError, Fault, ValueError) as error:
            facts["error"] = {"code": "sampling_failed", "message": str(error)}
            return None, facts
        [answer] = done["completions"]
        calls = answer.get("tool_calls")
        facts |= {
            "text": answer["text"],
            "tool_calls": calls,
            "finish_reason": "tool_calls" if calls else answer["stop_reason"],
            "prompt_tokens": done["prompt_tokens"],
            "completion_tokens": answer["tokens"],
            "reasoning": answer.get("reasoning") or "",
            "reasoning_tokens": answer.get("reasoning_tokens", 0),
        }
        sample = Sample.from_text(
            answer["text"],
            response_format=asked.response_format,
            truncated=answer["stop_reason"] == "length",
            tool_calls=calls,
            model=self._run.model,
        )
        return sample, facts


def chat_options(sampling: Json) -> Json:
    """Sampling parameters of either kind of run, as chat completions spell them.

    Raises:
        RequestError: for what has no meaning in a chat, naming the parameter.
    """
    options = {key: value for key, value in sampling.items() if key != "text"}
    tools = options.get("tools")
    if tools is not None:
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise RequestError(
                f"`tools` must be a list of objects, found {kind_of(tools)}", param="tools"
            )
        if not any("function" in tool for tool in tools):
            options["tools"] = chat_tools(tools)
    text = sampling.get("text")
    if text is not None and not isinstance(text, dict):
        raise RequestError(f"`text` must be an object, found {kind_of(text)}", param="text")
    format_ = (text or {}).get("format")
    if format_ is not None:
        options["response_format"] = response_format_from(format_)
    return options


def messages_for(source: Json, item: Json) -> list[Json]:
    """Return the prompt of one item: a filled template, or the item's own messages.

    Raises:
        InputError: when the template or the reference does not fit the item.
    """
    given = source["input_messages"]
    if given["type"] == "item_reference":
        path = given["item_reference"].strip()
        rendered = compile_template("{{" + path + "}}")(Sample(output_text=""), item)
        messages: list[Json] = json.loads(rendered)
        if not isinstance(messages, list):
            raise ValueError(f"{path} must be a list of messages")
        return messages
    return [
        {"role": message["role"], "content": _filled(message["content"], item)}
        for message in given["template"]
    ]


def _filled(content: Any, item: Json) -> str:
    if isinstance(content, list):
        return "".join(_filled(part, item) for part in content)
    text = content.get("text", "") if isinstance(content, dict) else content
    for path in paths(text):
        if path.namespace == "item" and look_up(path, Sample(output_text=""), item) is None:
            raise Fault("invalid_variable_error", f"`{path}` is null, so the prompt is empty")
    return compile_template(text)(Sample(output_text=""), item)


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
    if calls:
        facts["finish_reason"] = "tool_calls"
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
