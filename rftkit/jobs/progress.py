"""The progress of a job: one live line in a terminal, or one line per step elsewhere.

A `Progress` is called with updates (`rftkit.jobs.wait(client, job_id, Progress())`). It can be
attached when a job is half done. Not here: charts and notebook widgets.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from typing import Any, TextIO

from rftkit.diagnosis import share_words
from rftkit.jobs.jobs import TERMINAL, Event, Update, waits_for
from rftkit.jobs.metrics import step_metrics

__all__ = ["Progress", "duration"]

BAR_WIDTH = 10
PLAIN_WIDTH = 120
"""Columns of an event where nothing is live; the first of a job lists every setting."""
SEPARATOR = " · "


class Progress:
    """Shows a job while it runs.

    On a terminal the current step is one line rewritten in place; validations, warnings and the
    end stay. Elsewhere each of these, each step, and each event of a running job before its first
    step, is one plain line.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        """`stream` is stderr unless given."""
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._steps: dict[int, dict[str, float | None]] = {}
        self._total_steps: int | None = None
        self._status = ""
        self._message = ""

    def __call__(self, update: Update) -> None:
        """Show one update."""
        first = not self._status
        for event in update.events:
            self._take(event, quiet=first)
        if first and self._steps and not self._live:
            self._keep(*self._step_line(max(self._steps)))
        if update.job.status != self._status:
            self._status, self._message = str(update.job.status), ""
            if self._status in TERMINAL or self._status == "paused":
                self._keep(_ending(update))
                return
            if not self._live and not self._steps:
                self._keep(waits_for(update.events) or _waiting(self._status))
        if self._live:
            self._rewrite(self._line(time.time() - update.job.created_at))

    def _take(self, event: Event, *, quiet: bool) -> None:
        data = event.get("data") or {}
        if data.get("step") is not None and event.get("type") == "metrics":
            step = int(data["step"])
            self._steps[step] = step_metrics(data)
            self._total_steps = data.get("total_steps") or self._total_steps
            is_validated = any(
                self._steps[step][name] is not None
                for name in ("valid_reward_mean", "full_valid_loss")
            )
            if not quiet and (not self._live or is_validated):
                self._keep(*self._step_line(step))
            if not quiet and is_validated:
                for line in _parts(data):
                    self._keep(f"    {line}")
        elif event.get("level") in ("warn", "error"):
            self._keep(f"{event['level']}: {event.get('message', '')}")
        else:
            self._message = event.get("message", "")
            if not self._live and self._status == "running" and not self._steps:
                self._keep(textwrap.shorten(self._message, PLAIN_WIDTH, placeholder=" …"))

    def _line(self, elapsed: float) -> list[str]:
        if not self._steps:
            return [self._message or _waiting(self._status), duration(elapsed)]
        return self._step_line(max(self._steps), bar=True)

    def _step_line(self, step: int, *, bar: bool = False) -> list[str]:
        """Step k/N, time left, rewards or losses, speed; what is not known is left out."""
        now = self._steps[step]
        total = self._total_steps
        parts = [f"step {step:>{len(str(total or step))}}/{total or '?'}"]
        if bar and total:
            parts[0] += " " + _bar(step / total)
        if (left := self._seconds_left(step)) is not None:
            parts.append(f"{duration(left)} left")
        if now["train_reward_mean"] is not None:
            parts.append(f"train {now['train_reward_mean']:.3f}")
        parts += _losses(now) + self._validation(step)
        if now["tokens_per_second"] is not None:
            parts.append(f"{now['tokens_per_second']:,.0f} tok/s")
        if now["no_signal_groups"] is not None:
            parts.append(f"no signal {now['no_signal_groups']:.0%}")
        return parts

    def _validation(self, step: int) -> list[str]:
        """The last validation, after the first one, which is the model before training."""
        measured = {
            at: metrics["valid_reward_mean"]
            for at, metrics in sorted(self._steps.items())
            if metrics["valid_reward_mean"] is not None and at <= step
        }
        if not measured:
            return []
        first, last = next(iter(measured)), next(reversed(measured))
        start = "" if first == last else f"{measured[first]:.3f} → "
        return [f"valid {start}{measured[last]:.3f}"]

    def _seconds_left(self, step: int) -> float | None:
        """Steps left times the mean step so far, validations included."""
        seconds = [
            metrics["step_seconds"]
            for at, metrics in self._steps.items()
            if 0 < at <= step and metrics["step_seconds"] is not None
        ]
        if not seconds or not self._total_steps or step >= self._total_steps:
            return None
        return sum(seconds) / len(seconds) * (self._total_steps - step)

    def _keep(self, *parts: str) -> None:
        """Print a line that stays."""
        self._stream.write(("\r\x1b[K" if self._live else "") + SEPARATOR.join(parts) + "\n")
        self._stream.flush()

    def _rewrite(self, parts: list[str]) -> None:
        """Put the parts that fit in place of the live line."""
        columns = shutil.get_terminal_size().columns
        while len(parts) > 1 and len(SEPARATOR.join(parts)) >= columns:
            parts = parts[:-1]
        self._stream.write("\r\x1b[K" + SEPARATOR.join(parts)[: columns - 1])
        self._stream.flush()


def _losses(now: dict[str, float | None]) -> list[str]:
    """Losses and accuracies of a supervised or dpo job, as far as the step measured them."""
    words = {
        "train_loss": "loss {:.3f}",
        "train_accuracy": "tokens right {:.0%}",
        "train_reward_accuracy": "pairs right {:.0%}",
        "full_valid_loss": "valid loss {:.3f}",
        "full_valid_accuracy": "valid tokens right {:.0%}",
    }
    if now["full_valid_loss"] is None:
        words |= {"valid_loss": "valid loss {:.3f}"}
    return [form.format(value) for name, form in words.items() if (value := now[name]) is not None]


def _parts(data: dict[str, Any]) -> list[str]:
    """For a validation: the mean of each grader, flat groups of training, and answers with a fixed
    set of values.
    """
    graders = (data.get("scores") or {}).get("graders") or []
    lines = [
        f"{each['name']} {each['valid_reward_mean']:.3f}"
        + (f" (flat {flat:.0%})" if (flat := each.get("train_flat_groups")) is not None else "")
        for each in graders
        if len(graders) > 1 and each.get("valid_reward_mean") is not None
    ]
    answers = [
        f"{each['name']}: {share_words(each['valid'])}"
        for each in data.get("answers") or []
        if each["values"] and "valid" in each
    ]
    return ([SEPARATOR.join(lines)] if lines else []) + answers


def duration(seconds: float) -> str:
    """`42 s`, `3:07` (minutes) or `1:02:03` (hours)."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar(share: float) -> str:
    full = round(min(share, 1.0) * BAR_WIDTH)
    return "━" * full + "┄" * (BAR_WIDTH - full)


def _waiting(status: str) -> str:
    words = {
        "validating_files": "checking the files",
        "queued": "waiting for the worker",
        "running": "loading the model",
    }
    return words.get(status, status)


def _ending(update: Update) -> str:
    job = update.job
    if str(job.status) == "paused":
        return f"{job.id} is paused; resume it with: rftkit job resume {job.id}"
    if job.status == "succeeded":
        return f"{job.id} succeeded: {job.fine_tuned_model}"
    return f"{job.id} {job.status}"  # the reason is in its error event and in the error of `wait`
