"""Climb a ladder: do each rung that is not done, and run its model on the test rows.

A rung that cannot be done, such as dpo without a pair, has its reason in place of a result, and the
others continue. Finished rungs are kept and found by the state file or by the metadata of their
jobs. Everything goes through the `openai` client. Not here: their files (`training_files`), and the
comparison (`result`).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rftkit import jobs
from rftkit.client import api_message, judge_client
from rftkit.datasets.io import Complete
from rftkit.errors import InputError, JobFailedError
from rftkit.evals import saved_runs
from rftkit.ladder.asking import Cost, Task
from rftkit.ladder.kept import open_kept
from rftkit.ladder.reflection import reflect_with
from rftkit.ladder.rungs import LABELS, METHODS, Plan, key_of, parent_of
from rftkit.ladder.search import optimize_prompt
from rftkit.ladder.sources import rows_of
from rftkit.ladder.state import RungState, State, read_state
from rftkit.ladder.training_files import TrainingFiles
from rftkit.prompts import Prompt, read_prompt

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

__all__ = ["answers_path", "climb"]

LISTED_JOBS = 200
"""The newest jobs among which those of a ladder are looked for."""
OnProgress = Callable[[str], None]
Follow = Callable[[], Callable[[jobs.Update], None]]


class _Climb:
    """One run of a ladder: everything that each rung needs."""

    def __init__(
        self,
        client: OpenAI,
        data: Complete,
        plan: Plan,
        rungs: Sequence[str],
        state: State,
        on_progress: OnProgress,
        follow: Follow | None,
    ) -> None:
        self.client, self.data, self.plan, self.rungs = client, data, plan, rungs
        self.state, self.on_progress, self.follow = state, on_progress, follow
        self.test = rows_of(data.test)
        self.is_platform = "plan" in jobs.abilities(client)
        """Whether the service measures supervised and dpo jobs with a grader."""
        settings = {
            "temperature": plan.temperature,
            "max_completion_tokens": plan.max_completion_tokens,
        }
        purpose = {"ladder": state.about["began"]}
        kept = open_kept(answers_path(state.path), purpose, lambda line: None)
        self.task = Task(client, data.grader, data.response_format, settings, kept=kept)
        self.files = TrainingFiles(client, data, plan, self.task)

    def do(self, rung: str) -> RungState:
        """Do a rung, or find it done."""
        from openai import APIStatusError

        key = key_of(rung, self.rungs, self.plan, self.data)
        parent = parent_of(rung, self.rungs)
        known = self.state.rungs.get(rung)
        if known is None or known.key != key:
            known = self.state.put(RungState(rung, key, parent))
        if known.is_done and saved_runs.find(known.run or "") is not None:
            self.on_progress(f"{LABELS[rung]}: found again")
            return known
        try:
            self._make(rung)
            return self._answer(rung)
        except (InputError, JobFailedError) as error:
            reason = str(error)
        except APIStatusError as error:  # a model or method that this service does not have
            if error.status_code not in (400, 403, 404, 422):
                raise
            reason = api_message(error) or str(error)
        self.on_progress(f"{LABELS[rung]}: {reason}")
        return self.state.update(rung, error=reason.partition("\n")[0])

    def _make(self, rung: str) -> None:
        known = self.state.rungs[rung]
        if known.model and (known.prompt is None or Path(known.prompt).is_file()):
            return
        if rung == "base":
            self.state.update(rung, model=self.plan.model, seconds=0.0, tokens=0, error=None)
        elif rung == "prompt":
            self._find_prompt()
        else:
            self._train(rung)

    def _answer(self, rung: str) -> RungState:
        """Run a rung's model on the test rows, and save the answers."""
        known = self.state.rungs[rung]
        assert known.model is not None
        self.on_progress(f"{LABELS[rung]}: {len(self.test)} test rows …")
        found = self.task.run(
            known.model,
            self.test,
            name=LABELS[rung],
            prompt=read_prompt(known.prompt) if known.prompt else None,
            samples=self.plan.samples,
        )
        saved_runs.save(saved_runs.record_of(found, LABELS[rung]))
        return self.state.update(rung, run=found.runs[0].id, error=None)

    # the prompt

    def _find_prompt(self) -> None:
        self.on_progress("prompt: searching …")
        name = self.plan.reflection_model
        search = optimize_prompt(
            self.task,
            self.plan.model,
            rows_of(self.data.train),
            rows_of(self.data.valid),
            reflect=reflect_with(judge_client(), name) if name else None,
            budget=self.plan.budget,
            seed=self.plan.seed,
            on_progress=lambda line: self.on_progress(f"prompt: {line}"),
        )
        path = self.state.path.with_name(f"{self.state.path.stem}-prompt.json")
        search.write(path, model=self.plan.model, data=self.data.name)
        self.state.update(
            "prompt",
            model=self.plan.model,
            prompt=None if search.prompt == Prompt() else str(path),
            seconds=search.seconds,
            tokens=search.tokens,
            notes=(search.sentence,),
        )

    # jobs

    def _train(self, rung: str) -> None:
        known = self.state.rungs[rung]
        start = self.state.rungs.get(known.parent)
        if start is None or start.model is None:
            raise InputError(
                f"it starts from {LABELS[known.parent]}, which has no model"
                f"{f': {start.error}' if start and start.error else ''}"
            )
        job = self._job(known) or self._create(rung, start.model)
        self.state.update(rung, job=job.id, error=None)
        job = jobs.wait(self.client, job.id, self.follow() if self.follow else None)
        if str(job.status) == "paused":
            raise JobFailedError(f"{job.id} is paused; resume it with: rftkit job resume {job.id}")
        spent = (job.finished_at or int(time.time())) - job.created_at
        earlier = self.state.rungs[rung]
        self.state.update(
            rung,
            model=_model_of(self.client, job),
            seconds=float(spent) + (earlier.seconds or 0.0),
            tokens=(job.trained_tokens or 0) + (earlier.tokens or 0),
        )

    def _job(self, known: RungState) -> FineTuningJob | None:
        """The job of a rung that was started before, if it can still succeed."""
        listed = islice(self.client.fine_tuning.jobs.list(limit=100), LISTED_JOBS)
        for job in listed:
            metadata = job.metadata or {}
            is_same = (metadata.get("ladder"), metadata.get("rung")) == (known.key, known.rung)
            if is_same and str(job.status) not in ("failed", "cancelled"):
                self.on_progress(f"{LABELS[known.rung]}: {job.id} found again")
                return job
        return None

    def _create(self, rung: str, model: str) -> FineTuningJob:
        method = METHODS[rung]
        measured = method == "reinforcement" or self.is_platform
        self.on_progress(f"{LABELS[rung]}: making the files of its job …")
        files = self.files.of(method, model)
        cost = files.cost or Cost()
        self.state.update(rung, notes=files.notes, seconds=cost.seconds, tokens=cost.tokens)
        job = jobs.create(
            self.client,
            model=model,
            method=method,
            training_file=files.train,
            validation_file=files.valid,
            grader=self.data.grader if measured else None,
            response_format=self.data.response_format if measured else None,
            hyperparameters=self.plan.settings_of(rung),
            suffix=f"{self.data.name[:24]}-{method[:3]}".replace("_", "-"),
            seed=self.plan.seed,
            metadata=self._metadata(rung),
        )
        self.on_progress(f"{LABELS[rung]}: {job.id} from {model}")
        return job

    def _metadata(self, rung: str) -> dict[str, str]:
        graded = {}
        if self.is_platform and METHODS[rung] != "reinforcement":
            graded = {"grader_rows": self.files.upload(self.data.valid)}
        return {
            **graded,
            "max_completion_tokens": str(self.plan.max_completion_tokens),
            **self.plan.metadata,
            "ladder": self.state.rungs[rung].key,
            "rung": rung,
        }


def answers_path(state_path: str | Path) -> Path:
    """The file in which a ladder keeps its answers as they arrive, so that a resumed ladder
    requests none again.
    """
    return Path(state_path).with_suffix(".answers.jsonl")


def climb(
    client: OpenAI,
    data: Complete,
    plan: Plan,
    rungs: Sequence[str],
    state_path: str | Path,
    *,
    on_progress: OnProgress = print,
    follow: Follow | None = None,
) -> State:
    """Do every rung that is not done, and keep what is known in a file.

    Args:
        client: From `rftkit.connect()`, or any `openai.OpenAI`.
        data: Training, validation and test rows in RFT form, grader and response format.
        plan: The settings of all rungs.
        rungs: From `rungs_for`.
        state_path: The JSON file that keeps the finished rungs; `rftkit.ladder.read` makes the
            comparison of it.
        on_progress: Called with each line of progress.
        follow: Makes, for each job, what is called with its updates, such as `jobs.Progress`.

    Raises:
        InputError: The rows or the state file cannot be used.
        openai.OpenAIError: The service cannot be reached.
    """
    state = read_state(state_path, is_new=True)
    state.about = {
        "began": state.about.get("began") or uuid.uuid4().hex[:16],
        "data": data.name,
        "files": {name: str(getattr(data, name)) for name in ("train", "valid", "test")},
        "grader": data.grader,
        "response_format": data.response_format,
        "plan": asdict(plan),
        "rungs": list(rungs),
    }
    doing = _Climb(client, data, plan, rungs, state, on_progress, follow)
    for rung in rungs:
        doing.do(rung)
    return state


def _model_of(client: OpenAI, job: FineTuningJob) -> str:
    """The checkpoint with the best validation reward, if rewards were measured; else the last."""
    best = jobs.best(jobs.checkpoints(client, job.id))
    model = best.model if best else job.fine_tuned_model
    if not model:
        raise JobFailedError(f"{job.id} has no model")
    return model
