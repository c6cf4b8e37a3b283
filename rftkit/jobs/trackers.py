"""Send a job's metrics to experiment trackers while it runs, from any service.

`Tracked` is called with updates (`rftkit.jobs.wait(client, job_id, tracked)`), as `Progress` is. A
tracker has a thread and a bounded queue: a slow or broken tracker never delays the job or its
follower, and is reported once. Sending is tried again; what does not fit into the queue is dropped,
oldest first. The step that was sent last is kept in `RFTKIT_HOME/trackers`, so that a follower
that is started again continues the same run. Not here: the trackers themselves (`tracker_kinds`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit import settings
from rftkit.backoff import backoff_seconds
from rftkit.jobs.jobs import TERMINAL, Event, Update
from rftkit.jobs.metrics import step_metrics
from rftkit.jobs.tracker_kinds import OPENERS, Sink, TrackedJob
from rftkit.jsontext import as_text, parse_json
from rftkit.privacy import make_home
from rftkit.wholefile import write_whole

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Sender", "Tracked", "answer_rows", "values_of"]

QUEUE = 1000
"""Most values, tables and files that wait for a tracker."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds between two tries of a tracker that is down."""
END_SECONDS = 60.0
"""How long the end of a job waits for what is not sent yet."""
ROWS = 100
"""Answers in the table."""
OTHERS = {
    "completion_tokens_mean": "train/completion_tokens/mean",
    "unresponsive_share": "train/unresponsive_share",
    "flat_groups": "train/flat_groups",
    "no_signal_groups": "train/no_signal_groups",
    "tokens_per_second": "time/tokens_per_second",
}

Action = Callable[[Sink], None]


def values_of(data: Mapping[str, Any]) -> dict[str, float]:
    """The values of a metric event under the names of the field: `train/reward/mean` and others."""
    values = {_name(column): value for column, value in step_metrics(dict(data)).items()}
    scores = data.get("scores") or {}
    for grader in scores.get("graders") or []:
        for side in ("train", "valid"):
            values[f"{side}/reward/{grader.get('name')}"] = grader.get(f"{side}_reward_mean")
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _name(column: str) -> str:
    """`valid_reward_mean` → `valid/reward/mean`, `sampling_seconds` → `time/sampling_seconds`."""
    if column in OTHERS:
        return OTHERS[column]
    if column.endswith("_seconds"):
        return f"time/{column}"
    for side in ("full_valid", "train", "valid"):
        if column.startswith(f"{side}_"):
            rest = column.removeprefix(f"{side}_")
            return f"{side}/{'reward/mean' if rest == 'reward_mean' else rest}"
    return f"train/{column}"


class Sender:
    """One tracker, its queue, and the thread that empties it."""

    def __init__(
        self, kind: str, open_sink: Callable[[], Sink], warn: Callable[[str], None]
    ) -> None:
        """`open_sink` may take its time and may fail; `say` is called with the first failure."""
        self._kind, self._open, self._warn = kind, open_sink, warn
        self._actions: deque[Action] = deque()
        self._changed = threading.Condition()
        self._ends_at: float | None = None
        self._num_dropped = 0
        self._thread = threading.Thread(target=self._work, name=f"track-{kind}", daemon=True)
        self._thread.start()

    def put(self, action: Action) -> None:
        """Queue something; never waits."""
        with self._changed:
            if len(self._actions) >= QUEUE:
                self._actions.popleft()
                self._num_dropped += 1
            self._actions.append(action)
            self._changed.notify_all()

    def close(self, seconds: float = END_SECONDS) -> int:
        """Wait for what is queued, but not longer; how many actions were not carried out."""
        with self._changed:
            self._ends_at = time.monotonic() + seconds
            self._changed.notify_all()
        self._thread.join(seconds)
        with self._changed:
            lost = len(self._actions) + self._num_dropped
        if lost:
            self._warn(f"{self._kind}: {lost} updates were not sent")
        return lost

    def _work(self) -> None:
        sink: Sink | None = None
        failures = 0
        while (action := self._next()) is not None:
            try:
                sink = sink or self._open()
                action(sink)
            except Exception as error:  # tracker packages raise many types
                failures += 1
                if failures == 1:
                    reason = " ".join(str(error).split())[:300] or type(error).__name__
                    self._warn(
                        f"{self._kind} does not take what it is sent: {reason}. It is tried again"
                    )
                if not self._paused(backoff_seconds(failures, FIRST_PAUSE, LONGEST_PAUSE)):
                    return
                continue
            failures = 0
            self._done(action)

    def _next(self) -> Action | None:
        """The oldest action, when there is one; None: it is over."""
        with self._changed:
            while not self._actions:
                if self._ends_at is not None:
                    return None
                self._changed.wait()
            return self._actions[0]

    def _done(self, action: Action) -> None:
        with self._changed:
            if self._actions and self._actions[0] is action:
                self._actions.popleft()

    def _paused(self, seconds: float) -> bool:
        """Wait before the next try; False: there is no time for another one."""
        until = time.monotonic() + seconds
        with self._changed:
            while (left := until - time.monotonic()) > 0:
                if self._ends_at is not None and time.monotonic() >= self._ends_at:
                    return False
                end = left if self._ends_at is None else min(left, self._ends_at - time.monotonic())
                self._changed.wait(max(end, 0.01))
        return True


class Tracked:
    """A job that is sent to trackers while it is followed."""

    def __init__(
        self,
        client: OpenAI,
        integrations: Iterable[Mapping[str, Any]],
        warn: Callable[[str], None],
        report: Callable[[str, Path], Path] | None = None,
    ) -> None:
        """A job that is known with its first update.

        Args:
            client: where the job is.
            integrations: entries as `rftkit.integrations` checks them.
            warn: called once with a tracker that is down.
            report: makes the report of a job, by its id, in a folder; None: no report is sent.
        """
        self._client, self._warn, self._report = client, warn, report
        self._integrations = list(integrations)
        self._senders: dict[str, Sender] = {}
        self._places: dict[str, Path] = {}
        self._last: dict[str, int] = {}
        self._ended = False

    def __call__(self, update: Update) -> None:
        """Queue what is new."""
        if not self._senders:
            self._begin(update)
        for event in update.events:
            self._take(event)
        status = str(update.job.status)
        if (status in TERMINAL or status == "paused") and not self._ended:
            self._ended = True
            self._end(update, status)

    def close(self, seconds: float = END_SECONDS) -> None:
        """Wait for what is not sent yet, but not longer."""
        until = time.monotonic() + seconds
        for sender in self._senders.values():
            sender.close(max(until - time.monotonic(), 0.1))

    def _begin(self, update: Update) -> None:
        wire = update.job.to_dict(warnings=False)
        job = TrackedJob(update.job.id, _config(wire))
        folder = make_home(settings.home()) / "trackers"
        folder.mkdir(exist_ok=True)
        for entry in self._integrations:
            kind = str(entry["type"])
            options = dict(entry.get(kind) or {})
            self._places[kind] = folder / f"{job.id}-{kind}.json"
            self._last[kind] = _last_step(self._places[kind])
            open_sink = functools.partial(OPENERS[kind], job, options)
            self._senders[kind] = Sender(kind, open_sink, self._warn)

    def _take(self, event: Event) -> None:
        data = event.get("data") or {}
        if event.get("type") != "metrics" or data.get("step") is None:
            return
        step, values = int(data["step"]), values_of(data)
        for kind, sender in self._senders.items():
            if step > self._last[kind]:
                sender.put(self._log(kind, step, values))

    def _log(self, kind: str, step: int, values: Mapping[str, float]) -> Action:
        def log(sink: Sink) -> None:
            sink.log(step, values)
            self._last[kind] = step
            write_whole(self._places[kind], json.dumps({"step": step}))

        return log

    def _end(self, update: Update, status: str) -> None:
        if status in TERMINAL:
            columns, rows = answer_rows(self._client, update)
            report = self._made_report(update.job.id)
            for sender in self._senders.values():
                if rows:
                    sender.put(lambda sink: sink.table("valid/answers", columns, rows))
                if report is not None:
                    sender.put(lambda sink: sink.file(report))
        for sender in self._senders.values():
            sender.put(lambda sink: sink.close(status))

    def _made_report(self, job_id: str) -> Path | None:
        if self._report is None:
            return None
        try:
            return self._report(job_id, settings.home() / "trackers")
        except Exception as error:  # a report runs a notebook, which can fail in any way
            self._warn(f"the report was not made and not sent: {error}")
            return None


def answer_rows(client: OpenAI, update: Update) -> tuple[list[str], list[list[Any]]]:
    """The answers of the job's last validation: row, prompt, answer, passed, scores by grader.

    No rows where the service keeps no eval of the job, or does not answer.
    """
    columns = ["row", "prompt", "answer", "passed", "scores"]
    eval_id = getattr(update.job, "eval_id", None)
    if not eval_id:
        return columns, []
    from openai import OpenAIError

    with contextlib.suppress(OpenAIError):
        runs = client.evals.runs.list(eval_id, order="desc", limit=1).data
        if not runs:
            return columns, []
        items = client.evals.runs.output_items.list(runs[0].id, eval_id=eval_id, limit=ROWS).data
        return columns, [_answer_row(item.to_dict(warnings=False)) for item in items]
    return columns, []


def _answer_row(item: Mapping[str, Any]) -> list[Any]:
    sample = item.get("sample") or {}
    results = item.get("results") or []
    return [
        item.get("datasource_item_id"),
        _last_text(sample.get("input")),
        _last_text(sample.get("output")),
        all(each.get("passed") for each in results) if results else None,
        ", ".join(f"{each.get('name')}={each.get('score')}" for each in results),
    ]


def _last_text(messages: Any) -> str:
    last = messages[-1] if isinstance(messages, list) and messages else {}
    content = last.get("content") if isinstance(last, Mapping) else None
    return as_text(content)


def _config(wire: Mapping[str, Any]) -> dict[str, Any]:
    method = wire.get("method") or {}
    kind = method.get("type")
    inner = method.get(kind) or {}
    return {
        "model": wire.get("model"),
        "method": kind,
        "seed": wire.get("seed"),
        "training_file": wire.get("training_file"),
        "validation_file": wire.get("validation_file"),
        **(inner.get("hyperparameters") or {}),
    }


def _last_step(path: Path) -> int:
    try:
        return int(parse_json(path.read_bytes())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1
