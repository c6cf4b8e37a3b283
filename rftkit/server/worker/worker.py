"""The worker process: one thread owns the models, trains the oldest job and answers chats.

The server starts it as `python -m rftkit.server.worker --home HOME`. The two exchange JSON lines
over stdin and stdout (`worker_process.py`). It may be killed at any time: a job's folder holds all
that the next worker needs to continue it (`journal.py`). `training/loop.py` has the loop.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock

from rftkit import privacy, settings
from rftkit.backoff import backoff_seconds
from rftkit.errors import EngineLostError, InputError, NotFoundError, RftkitError, RowError
from rftkit.graders import CompiledGrader, JudgeCache, compile_grader
from rftkit.safetext import redacted
from rftkit.server.engine.models import ChangedModelError
from rftkit.server.engine.tinker import remote
from rftkit.server.inference.judge import embedding_call, judge_call
from rftkit.server.inference.platform import Platform
from rftkit.server.inference.requests import WorkerRequest, request_from
from rftkit.server.store.records import Job
from rftkit.server.store.store import Store
from rftkit.server.training import dpo, loop, rft, supervised
from rftkit.server.training.accounts import JudgeAccount
from rftkit.server.training.checkpoints import sweep
from rftkit.server.training.context import AnyRun, Run, Stopped, Watch
from rftkit.server.training.final_checks import read_checks
from rftkit.server.training.journal import Journal
from rftkit.server.training.offline_plan import OfflinePlan
from rftkit.server.training.plan import VERSION, CommonPlan, NewerPlanError, Plan, plan_from
from rftkit.server.training.probe import probe
from rftkit.server.worker.chats import ChatQueue
from rftkit.server.worker.engines import Engines, kind_of_model
from rftkit.server.worker.job_files import FILES, check_file, check_functions
from rftkit.server.worker.preparation import Preparation
from rftkit.tools import ToolFailed, Tools, open_tools
from rftkit.wholefile import temporary_problem

__all__ = ["Worker", "WorkerPlatform", "main"]

METHODS: dict[str, loop.Method] = {"reinforcement": rft, "supervised": supervised, "dpo": dpo}
PLANS: dict[str, type[CommonPlan]] = {
    "reinforcement": Plan,
    "supervised": OfflinePlan,
    "dpo": OfflinePlan,
}
CHECK_SECONDS = 0.5
"""How often the worker checks, within a step, whether the job was cancelled."""
IDLE_SECONDS = 0.02
"""How long chats are served before the worker polls the graders again; a step may wait for them."""
PAUSE_SECONDS = 10.0
"""How long a pause waits until graders finish a step; unfinished grades are then dropped."""
ROW_SECONDS = 60.0
"""How long the chat template may take for one row of a job."""
POLL_SECONDS = 2.0
"""How often an idle worker polls for jobs."""
AWAY_SECONDS = (2.0, 60.0)
"""First and longest wait for an unreachable training server."""
TOOLS = "method.reinforcement.tools"
"""The field of a job that says where its calls go."""
REFUSALS = 5
"""A job fails after a training server has refused the same step this many times in a row."""
FULL_SECONDS = 5.0
"""How long a job waits before it retries after a machine problem, such as a full disk."""


class Worker:
    """Trains jobs one after the other, and answers chats between their steps."""

    def __init__(self, home: Path, send: Any) -> None:
        self.home = home
        self.store = Store.open(home)
        self._send = send
        self.engines = Engines(home, self._watched)
        self.chats = ChatQueue(self.store, self.engines, send)
        self._thread = threading.get_ident()
        self.store.on_wait = self._while_locked
        self.news = threading.Event()
        self.losses = 0
        self.lost_at: tuple[str, int] | None = None
        self.refusals = 0

    @contextlib.contextmanager
    def _watched(self, what: str, seconds: float, job: str | None) -> Iterator[None]:
        """Announce work that may hang; after the time limit the server replaces this process."""
        self._send({"at": {"what": what, "seconds": seconds, "job": job}})
        try:
            yield
        finally:
            self._send({"at": None})

    def _while_locked(self) -> None:
        """Answer chats while another program has locked the database."""
        if threading.get_ident() != self._thread or not self.chats.serve(IDLE_SECONDS):
            time.sleep(IDLE_SECONDS)

    def receive(self, line: str) -> None:
        """Handle one message from the server."""
        message = json.loads(line)
        if message["kind"] == "chat":
            self.chats.put(message["id"], request_from(message["request"]))
        elif message["kind"] == "abort":
            self.chats.abort(message["id"])
        self.news.set()

    def work(self) -> None:
        """Answer chats and train jobs until the process ends."""
        self._sweep()
        while True:
            is_serving = self.chats.serve(CHECK_SECONDS)
            job = self._claimed()
            if job is None and not is_serving:
                self.news.wait(POLL_SECONDS)
                self.news.clear()
            elif job is not None:
                self.run_job(job)

    def _sweep(self) -> None:
        """Delete unlisted checkpoints of ended jobs; a killed worker may have left them."""
        for folder in (self.home / "jobs").glob("ftjob-*/checkpoints"):
            with contextlib.suppress(NotFoundError):  # an older copy of the database
                if self.store.job(folder.parent.name).is_terminal:
                    sweep(self.store, folder)

    def _claimed(self) -> Job | None:
        try:
            return self.store.claim_job()
        except sqlite3.OperationalError as error:  # the disk is full, or locked for long
            self._log(f"cannot claim a job: {error}")
            return None

    def run_job(self, job: Job) -> None:
        """Check a job's files, or train it. An error ends the job, never the worker."""
        try:
            if job.status == "validating_files":
                self.validate(job)
            else:
                self.train(job)
        except Stopped:
            self._pause(job)
        except EngineLostError as error:
            self._wait_for_engine(job, error)
        except (NewerPlanError, ChangedModelError, ToolFailed) as error:
            if self.store.job(job.id).status == "validating_files":
                self._fail(job, str(error), "tool_failed", TOOLS)
                return
            with self.store.transaction():
                if self.store.try_status(job.id, "paused"):
                    self.store.add_event(job.id, f"Pausing the job: {error}", level="warn")
        except Exception as error:
            if (reason := temporary_problem(error)) is None:
                self._end(job, error)
            else:
                self._wait_out(job, reason, error)

    def _end(self, job: Job, error: Exception) -> None:
        """Fail a job with the exception that it raised."""
        self._log("".join(traceback.format_exception(error)))
        if isinstance(error, InputError):
            is_of_file = isinstance(error, RowError) and error.param in FILES
            code = f"invalid_{error.param}" if is_of_file else error.code or "invalid_request"
            self._fail(job, error.message, code, error.param)
        elif isinstance(error, FloatingPointError):
            message = f"The update is not a finite number: {error}. Lower the learning rate."
            self._fail(job, message, "nan", None)
        else:
            code = "server_error" if isinstance(error, RftkitError) else type(error).__name__
            self._fail(job, f"The job failed with an error: {error}", code, None)

    def _wait_out(self, job: Job, reason: str, error: Exception) -> None:
        """Wait after a temporary problem of the machine; the job keeps its status."""
        self._log(f"{job.id} waits: {reason} ({error})")
        with contextlib.suppress(Exception):  # the event itself may fail for the same reason
            message = f"{reason} ({error}). The job continues when the problem is solved."
            self.store.add_event(job.id, message, level="warn", key=reason)
        with contextlib.suppress(sqlite3.Error):
            self._serve_for(FULL_SECONDS, job)

    def _wait_for_engine(self, job: Job, error: EngineLostError) -> None:
        """Wait for a lost training server; the job then continues from its last saved state.

        Each failed attempt doubles the wait; a finished step resets it. The job fails if the server
        refuses the same step several times in a row.
        """
        here = (job.id, len(Journal(self.home / "jobs" / job.id).steps()))
        if here != self.lost_at:
            self.lost_at, self.losses, self.refusals = here, 0, 0
        wait = backoff_seconds(self.losses, *AWAY_SECONDS)
        self.losses += 1
        self.refusals = self.refusals + 1 if error.refused else 0
        if self.refusals == REFUSALS:
            self._end(job, RftkitError(f"{error}. It refused the step {REFUSALS} times in a row"))
            return
        message = f"{error}. The job tries again in {wait:.0f} s."
        self._log(f"{job.id}: {message}")
        self.store.add_event(job.id, message, level="warn", key=f"engine-lost-{time.time_ns()}")
        self._serve_for(wait, job)
        self._pause(job)

    def _pause(self, job: Job) -> None:
        """Pause a job that was stopped within a step, if a pause was requested."""
        with self.store.transaction():
            if self.store.job(job.id).status == "pausing":
                message = "Paused within a step; everything but the unfinished grades is saved."
                self.store.add_event(job.id, message)
                self.store.update_job(job.id, status="paused")

    def _serve_for(self, seconds: float, job: Job) -> None:
        """Answer chats for some seconds, or until the job is no longer running."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.store.job(job.id).status == "running":
            self.chats.serve(CHECK_SECONDS)
            time.sleep(0.01)

    def _log(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the log may be on the same full disk
            print(text, file=sys.stderr, flush=True)

    def validate(self, job: Job) -> None:
        """Check the rows of both files, against the job's grader if it has one; then queue it."""
        for param in FILES:
            if not getattr(job, param):
                continue
            self.store.add_event(job.id, f"Validating {_words(param)}: {getattr(job, param)}",
                                 key=f"validating-{param}")  # fmt: skip
            for note in check_file(self.store, job, param):
                self.store.add_event(job.id, note, level="warn", key=note)
        with _tools_of(job) as tools:
            if tools is not None:
                check_functions(self.store, job, tools)
        with self.store.transaction():
            if self.store.try_status(job.id, "queued"):
                message = "Files validated, moving job to queued state"
                self.store.add_event(job.id, message, key="validated")

    def train(self, job: Job) -> None:
        """Train a job from its last saved state."""
        with _tools_of(job) as tools:
            self._train(job, tools)

    def _train(self, job: Job, tools: Tools | None) -> None:
        journal = Journal(self.home / "jobs" / job.id)
        add_event = self._adder(job)
        start = self.store.model(job.model)
        base = start.base if start else job.model
        journal.sweep()
        journal.on_damage = partial(add_event, level="warn")
        add_event(f"Loading {base}")
        known = journal.plan()
        plan = None if known is None else plan_from(known, PLANS[job.method_type])
        wanted = (job.metadata or {}).get("engine") or (kind_of_model(start) if start else None)
        kind = remote.kind_of(base, self.home, wanted) if plan is None else plan.engine
        try:
            engine = self.engines.get(base, add_event, kind, job.id)
        except NotFoundError as error:  # perhaps its folder is on a disk that is away
            raise ChangedModelError(f"{error}. Resume the job when it is there again") from error
        thinking = start.thinking if start and start.thinking else engine.thinking
        budget = engine.memory_bytes
        checks, on_tick = read_checks(self.home), self._on_tick(job.id)
        watch: Watch = partial(self._watched, seconds=ROW_SECONDS, job=job.id)
        work = Preparation(
            self.store, job, engine, journal, add_event, base=base, checks=checks, watch=watch,
            on_tick=on_tick, tools=tools,
        )  # fmt: skip
        plan = work.plan(plan, thinking, kind)
        journal.write_plan({"version": VERSION, **plan.to_dict()})
        job = work.start(plan)
        before = (job.usage_metrics or {}).get("model_graders")
        judges = JudgeAccount(journal.folder / "judges.jsonl", before)
        with (
            self._grader(job, plan, judges) as grader,
            self._held_out(job, plan, judges) as held_out,
        ):
            run: AnyRun = Run(
                job=job,
                plan=plan,
                store=self.store,
                engine=engine,
                compiled_grader=grader,
                held_out=held_out,
                journal=journal,
                rows=work.rows,
                valid_rows=work.valid_rows,
                examples=work.examples,
                valid_examples=work.valid_examples,
                model_base=base,
                tools=tools,
                start_adapter=Path(start.folder) if start else None,
                on_tick=on_tick,
                watch=watch,
                idle=self._idle(job.id),
                checks=checks,
                compile=lambda spec: self._compiled(spec, plan, judges),
                judges=judges,
            )
            engine.memory_bytes = plan.memory_bytes or budget
            try:
                (probe if job.is_probe else loop.train)(run, METHODS[job.method_type])
            except EngineLostError:
                self.engines.forget(engine)
                raise
            finally:
                engine.drop_policy()
                engine.memory_bytes = budget  # the next job has its own plan

    def _adder(self, job: Job) -> Callable[..., None]:
        def add_event(text: str, level: str = "info") -> None:
            self.store.add_event(job.id, text, level=level, key=text)

        return add_event

    def _grader(
        self, job: Job, plan: CommonPlan, judges: JudgeAccount
    ) -> contextlib.AbstractContextManager[CompiledGrader | None]:
        if job.grading is None:
            return contextlib.nullcontext()
        return self._compiled(job.grading["grader"], plan, judges)

    def _held_out(
        self, job: Job, plan: CommonPlan, judges: JudgeAccount
    ) -> contextlib.AbstractContextManager[CompiledGrader | None]:
        spec = job.method.get("held_out")
        return contextlib.nullcontext() if spec is None else self._compiled(spec, plan, judges)

    def _compiled(
        self, spec: dict[str, Any], plan: CommonPlan, judges: JudgeAccount
    ) -> CompiledGrader:
        platform = WorkerPlatform(self.chats, self.store)
        return compile_grader(
            spec,
            floor_reward=plan.floor_reward,
            complete=judges.counted(judge_call(platform)),
            embed=embedding_call(platform),
            concurrency=settings.judge_concurrency(),
            workers=max(2, os.cpu_count() or 2),
            groups=True,
            # The cache avoids repeated judge calls for the same text when a worker was killed.
            cache=JudgeCache(self.home / "judge-cache.jsonl"),
        )

    def _on_tick(self, job_id: str) -> Callable[[], None]:
        """Return what runs between two parts of a step: answer chats, and stop on a cancel."""
        last = time.monotonic()

        def on_tick() -> None:
            nonlocal last
            self.chats.share()
            if time.monotonic() - last > CHECK_SECONDS:
                last = time.monotonic()
                if self.store.job(job_id).status == "cancelled":
                    raise Stopped

        return on_tick

    def _idle(self, job_id: str) -> Callable[[], None]:
        """Return what runs while graders work: answer chats; stop on a cancel or a late pause."""
        last = asked = time.monotonic()

        def idle() -> None:
            nonlocal last, asked
            self.chats.serve(IDLE_SECONDS)
            if time.monotonic() - last <= CHECK_SECONDS:
                return
            last, status = time.monotonic(), self.store.job(job_id).status
            if status != "pausing":
                asked = last
            if status == "cancelled" or last - asked > PAUSE_SECONDS:
                raise Stopped

        return idle

    def _fail(self, job: Job, message: str, code: str, param: str | None) -> None:
        message = redacted(message, settings.keys())
        error = {"code": code, "message": message, "param": param}
        with self.store.transaction():
            if self.store.try_status(job.id, "failed", error=error):
                self.store.add_event(job.id, message, level="error", key=f"failed-{time.time_ns()}")


class WorkerPlatform(Platform):
    """The platform for judge calls that the worker answers itself."""

    def __init__(self, chats: ChatQueue, store: Store) -> None:
        self.store = store
        self._chats = chats

    def complete_in_thread(self, request: WorkerRequest) -> dict[str, Any]:
        """Run a model of this process, from a grader's thread."""
        return self._chats.ask(request)


@contextlib.contextmanager
def _tools_of(job: Job) -> Iterator[Tools | None]:
    """The tools of a job while it is worked on; None: it has none.

    Raises:
        ToolFailed: one of them is not there.
        InputError: they cannot be used together.
    """
    entries = job.method.get("reinforcement", {}).get("tools")
    if not entries:
        yield None
        return
    with contextlib.closing(open_tools(entries)) as tools:
        yield tools


def _words(param: str) -> str:
    return param.replace("_", " ")


def main() -> None:
    """Run the worker until its standard input ends."""
    parser = argparse.ArgumentParser(prog="rftkit.server.worker")
    parser.add_argument("--home", type=Path, required=True)
    home = parser.parse_args().home
    os.umask(privacy.UMASK)

    # Standard output carries the messages to the server; anything printed goes to the log.
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Standard input carries the server's. A library that prompts the user reads an empty file.
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with lock:
            try:
                messages.write(json.dumps(message, separators=(",", ":")) + "\n")
                messages.flush()
            except BrokenPipeError:
                os._exit(0)  # the server has ended; its next worker continues the job

    # The worker of a killed server may take a moment to end; two must not train one job.
    with FileLock(home / "worker.lock"):
        worker = Worker(home, send)
        _serve(worker, requests)


def _serve(worker: Worker, requests: TextIO) -> None:
    def listen() -> None:
        for text in requests:
            worker.receive(text)
        os._exit(0)  # the server has ended; its next worker continues the job

    threading.Thread(target=listen, name="listen", daemon=True).start()
    worker.work()


if __name__ == "__main__":
    main()
