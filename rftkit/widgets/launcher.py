"""JobLauncher: choose model and data, run checks, estimate time and cost, then start the job.

Three steps, each a method and a button: `check` (takes seconds, needs no model), `estimate` (a
probe of two steps on the platform) and `start`. `start` refuses while a check is neither ok nor
overridden by name. Every field of the form is part of the panel's state, so that a cell can set it.
The checks, the probe and the estimate come from `rftkit.jobs`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ipywidgets
from traitlets import Dict, Enum, Float, Int, List, Unicode

from rftkit import jobs
from rftkit.errors import InputError
from rftkit.graders import judges
from rftkit.hyperparameters import EVERY, KNOBS, METHODS, check_names
from rftkit.jobs.preflight import CHECKS, Check
from rftkit.tools import mask_tools
from rftkit.views import launch, note
from rftkit.views.markup import Html, copyable, html, join, wrap
from rftkit.widgets.launchform import SPECS, LaunchForm, wide, wrapping
from rftkit.widgets.panel import STORED_BYTES, Panel, live
from rftkit.widgets.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from openai import OpenAI

__all__ = ["JobLauncher"]

PROBE_POLL_SECONDS = 0.25
SECTIONS = {"checklist": "Checklist", "settings": "Settings", "request": "Request", "code": "Code"}


class JobLauncher(Panel):
    """Set up a job, check it, estimate it, start it.

    `JobLauncher("tiny_copy", model="rftkit-tiny")` fills the form from a dataset folder or the name
    of a bundled one; every field can be set in code (`set(hyperparameters={"n_epochs": 2})`) or in
    the form. `start()` returns the job's id; a started job does not need this panel.

    Args:
        dataset: a bundled dataset's name, or a folder with train.jsonl, valid.jsonl, grader.json.
        client: default `rftkit.connect()`; any `openai.OpenAI`.
        state: `method`, `train`, `valid`, `model`, `grader`, `response_format`,
            `tools`, `max_episode_steps`, `hyperparameters`, `metadata`, `suffix`, `seed`,
            `overridden`, and the prices of `cost`. `grader`, `response_format` and `tools` may be
            paths, as `GraderLab.save` returns them. A supervised or dpo job needs none of them,
            nor `valid`; with grader and format a platform of rftkit measures its checkpoints.
    """

    dataset = Unicode("", help="Name or folder of the dataset that fills the form.")
    method = Enum(list(METHODS), default_value="reinforcement", help="How the job learns.")
    train = Unicode("", help="JSONL file, or the id of an uploaded one.")
    valid = Unicode("", help="JSONL file, or the id of an uploaded one.")
    model = Unicode("smollm2-135m-instruct", help="Base or fine-tuned model.")
    grader = Dict(help="Grader, as on the wire.")
    response_format = Dict(allow_none=True, default_value=None, help="Constrains every answer.")
    tools = List(Dict(), help="Where calls go: [{name, server_url, headers}]; see rftkit.tools.")
    max_episode_steps = Int(None, allow_none=True, help="Most turns of a rollout with tools.")
    hyperparameters = Dict(help="The hyperparameters that are not auto.")
    metadata = Dict(help="Pairs of text, for settings that have no field in the protocol.")
    suffix = Unicode("", help="Part of the new model's name.")
    seed = Int(None, allow_none=True, help="Makes the run repeatable.")
    overridden = List(Unicode(), help="Names of checks that do not stop the start.")
    usd_per_hour = Float(0.0, help="Price of the machine, for the estimate.")
    usd_per_million_prompt_tokens = Float(0.0, help="Price of the judge, for the estimate.")
    usd_per_million_completion_tokens = Float(0.0, help="Price of the judge, for the estimate.")
    section = Enum(list(SECTIONS), default_value="checklist", help="What is shown below the form.")
    job_id = Unicode("", help="The job that was started most recently.")

    def __init__(self, dataset: str = "", *, client: OpenAI | None = None, **state: Any) -> None:
        """`dataset` fills train, valid, grader and response format; `state` overrides them."""
        from rftkit.client import connect

        self._client = client or connect()
        self._has_probes = "probe" in jobs.abilities(self._client)
        self._checks: dict[str, Check] = {}
        self._estimate: jobs.Estimate | None = None
        self._uploaded: dict[str, str] = {}
        self._started: dict[str, Any] | None = None
        self._monitors: list[Any] = []
        self._plan: tuple[str, dict[str, Any] | None] = ("", None)
        filled = _dataset_state(dataset) if dataset else {}
        super().__init__(dataset=dataset, **{**filled, **state})

    # what it shows

    def data(self) -> pd.DataFrame:
        """The checklist: one row per check."""
        import pandas as pd

        rows = [
            (check.name, check.state, check.name in self.overridden, check.result)
            for check in self.checks
        ]
        return pd.DataFrame(rows, columns=["check", "state", "overridden", "result"])

    @property
    def checks(self) -> list[Check]:
        """The checklist with the results so far."""
        todo = {"learnability": "run the estimate first: this check uses the probe's answers"}
        return [
            self._checks.get(name)
            or Check(name, "not checked", todo.get(name, "run the checks first"))
            for name in self._names
        ]

    @property
    def _names(self) -> Sequence[str]:
        """The names of the checks.

        A service without probes cannot check learnability, and only a reinforcement job learns from
        its grader and calls tools.
        """
        names = CHECKS if self._has_probes else CHECKS[:-1]
        only_if = {
            "grader": self._learns_from_grader,
            "calibration": self._asks_judge,
            "tools": self._learns_from_grader and bool(self.tools),
        }
        return [each for each in names if only_if.get(each, True)]

    @property
    def _asks_judge(self) -> bool:
        return self._learns_from_grader and bool(judges(self.grader))

    @property
    def _method(self) -> jobs.Method:
        return cast("jobs.Method", self.method)

    @property
    def _learns_from_grader(self) -> bool:
        return bool(self.method == "reinforcement")

    def request(self) -> dict[str, Any]:
        """The request body; files without an id appear as paths, headers of tools as asterisks."""
        graded = {"grader": self.grader, "response_format": self.response_format}
        graded = {name: value for name, value in graded.items() if value}
        inner, metadata = {"hyperparameters": self.hyperparameters}, self.metadata
        if self._learns_from_grader:
            inner = {**graded, **self._episodes(), **inner}
            if self.tools:
                inner["tools"] = mask_tools(self.tools)
        else:  # the grader only measures checkpoints
            metadata = {**metadata, **{name: jobs.compact(each) for name, each in graded.items()}}
        body = {
            "model": self.model,
            "training_file": self._uploaded.get(self.train, self.train),
            "validation_file": self._uploaded.get(self.valid, self.valid),
            "method": {"type": self.method, self.method: inner},
            "suffix": self.suffix,
            "seed": self.seed,
            "metadata": metadata,
        }
        return {name: value for name, value in body.items() if value not in (None, "", {})}

    def code(self) -> str:
        """The same job as a few lines over OpenAI's client."""
        paths = {"training_file": self.train, "validation_file": self.valid}
        todo = {name: path for name, path in paths.items() if path and not path.startswith("file-")}
        return launch.client_code(self.request(), todo)

    def plan(self) -> dict[str, Any] | None:
        """What every `auto` becomes, and why; None when the service does not report it."""
        if not self._has_probes or not self.train:
            return None
        settings = (self.hyperparameters, self.metadata)
        given = json.dumps([self.train, self.method, *settings], sort_keys=True)
        if self._plan[0] != given:
            rows = self._num_rows("train")
            found = jobs.plan(self._client, rows, *settings, method=self._method)
            self._plan = (given, found)
        return self._plan[1]

    def to_html(self, *, max_bytes: int = 300_000) -> Html:
        """Choices, checklist and estimate; for a large `max_bytes`, also settings and request."""
        parts = [self._summary(), self._result()]
        names = ["checklist"] if max_bytes <= STORED_BYTES else list(SECTIONS)
        parts += [self._section(name) for name in names]
        return join(parts, plain="\n".join(part.plain for part in parts[:3] if part))

    def _summary(self) -> Html:
        file = "/".join(Path(self.train).parts[-2:]) or "(no file yet)"  # its folder names the data
        chosen = f"{self.method}, {self.model} on {file}"
        said = f"Started {self.job_id}: {chosen}" if self.job_id else f"Not started: {chosen}"
        return wrap(html("<p><strong>{}</strong></p>", said), plain=said)

    def _result(self) -> Html:
        """The estimate, if there is one."""
        if self._estimate is None:
            return note("") if self._has_probes else note(_NO_PROBE)
        prices = (
            self.usd_per_hour,
            self.usd_per_million_prompt_tokens,
            self.usd_per_million_completion_tokens,
        )
        return launch.estimated(self._estimate, self._estimate.cost(*prices))

    def _section(self, name: str) -> Html:
        if name == "checklist":
            return launch.checklist(self.checks, self.overridden)
        if name == "settings":
            return launch.settings(self.hyperparameters, self.plan())
        if name == "code":
            return wrap(copyable("Copy the code", self.code(), is_open=True), plain=self.code())
        body = json.dumps(self.request(), indent=1, ensure_ascii=False)
        return wrap(copyable("Copy the request", body, is_open=True), plain=body)

    # what it does

    def check(self) -> None:
        """Check the data and what the grader pays for cheats, and fill the checklist."""
        self._require_files()
        doing = f"Checking the data{' and the grader' * self._learns_from_grader}"
        self._work(self._check, self._take_checks, doing, slot="check")

    def estimate(self) -> None:
        """Run a probe of two steps, and estimate time, memory and cost of the whole job."""
        if not self._has_probes:
            raise InputError(_NO_PROBE)
        self._require_files()
        doing = "Probing: running two steps on the platform"
        self._work(self._probe, self._take_estimate, doing, slot="probe")

    def start(self) -> str:
        """Wait for running checks, start the job, and return its id.

        Raises:
            InputError: a check is neither ok nor overridden.
        """
        self.wait()
        return self._start()

    def _start(self) -> str:
        self._require_files()
        absent = set(CHECKS) - set(self._names)
        jobs.require(self.checks, [each for each in self.overridden if each not in absent])
        job = jobs.create(self._client, **self._arguments())
        self._started = self.request()
        self.set(job_id=job.id)
        self._draw_if_shown()
        return job.id

    def _require_files(self) -> None:
        if not self.train:
            raise InputError("choose a training file first")
        if not self._learns_from_grader:
            return
        if not self.valid:
            raise InputError("a reinforcement job needs a validation file: choose one first")
        if not self.grader:
            raise InputError(
                "there is no grader: paste its JSON, choose a dataset that has one, or choose "
                "method supervised, which learns from the answers of the rows"
            )

    def _check(self, task: Task) -> list[Check]:
        from rftkit.client import judge_call

        train, valid = self._path("train"), self._path("valid") if self.valid else None
        answers = self.response_format
        tools = self.tools if self._learns_from_grader else []
        data = jobs.check_data(
            train, valid, method=self._method, grader=self.grader or None, response_format=answers,
            tools=tools or None,
        )  # fmt: skip
        if not self._learns_from_grader:
            return [data]
        found = [data, jobs.check_tools(tools)] if tools else [data]
        if data.state == "error":
            return [*found, Check("grader", "not checked", "fix the data first")]
        task.report("Grading cheats …")
        items = [row.item for row in self._rows("train")]
        audited = jobs.check_grader(
            self.grader, items, response_format=self.response_format, complete=judge_call()
        )
        found.append(audited)
        if self._asks_judge:
            found.append(jobs.check_calibration(self._client, self.grader))
        return found

    def _take_checks(self, checks: Sequence[Check]) -> None:
        self._checks |= {check.name: check for check in checks}
        self._draw_if_shown()

    def _probe(self, task: Task) -> tuple[jobs.Estimate, Check]:
        job = jobs.probe(self._client, **self._arguments())
        for update in jobs.watch(self._client, job.id, poll_seconds=PROBE_POLL_SECONDS):
            if task.cancelled:
                self._client.fine_tuning.jobs.cancel(job.id)
                break
            task.report(f"Probing: {_last_message(update)}")
            job = update.job
        if job.status == "failed":
            raise InputError(f"the probe failed, and so would the job: {jobs.error_of(job)}")
        events = jobs.events(self._client, job.id)
        return jobs.estimate(events), jobs.check_learnability(events)

    def _take_estimate(self, found: tuple[jobs.Estimate, Check]) -> None:
        self._estimate = found[0]
        self._take_checks([found[1]])

    def _arguments(self) -> dict[str, Any]:
        """Arguments for `jobs.create`; files that have no id are uploaded."""
        for path in filter(None, (self.train, self.valid)):
            if not path.startswith("file-") and path not in self._uploaded:
                from rftkit import datasets

                self._uploaded[path] = datasets.upload(self._client, path).id
        return {
            "model": self.model,
            "training_file": self._uploaded.get(self.train, self.train),
            "validation_file": self._uploaded.get(self.valid, self.valid) or None,
            "method": self.method,
            "grader": self.grader or None,
            "response_format": self.response_format,
            "hyperparameters": self.hyperparameters or None,
            "metadata": self.metadata or None,
            "suffix": self.suffix or None,
            "seed": self.seed,
            **(self._episodes() if self._learns_from_grader else {}),
        }

    def _episodes(self) -> dict[str, Any]:
        """Further settings of a job with tools."""
        given = {"tools": self.tools, "max_episode_steps": self.max_episode_steps}
        return {name: value for name, value in given.items() if value} if self.tools else {}

    def _path(self, name: str) -> Path:
        """The local path of a file; an uploaded file is downloaded."""
        given: str = getattr(self, name)
        if not given.startswith("file-"):
            return Path(given)
        if not hasattr(self, "_folder"):
            self._folder = tempfile.TemporaryDirectory(prefix="rftkit-launch-")
        path = Path(self._folder.name) / f"{given}.jsonl"
        if not path.exists():
            path.write_bytes(self._client.files.content(given).content)
        return path

    def _rows(self, name: str) -> list[Any]:
        from rftkit import datasets

        return datasets.read(self._path(name))

    def _num_rows(self, name: str) -> int:
        """Rows of any form."""
        from rftkit import datasets

        with datasets.open(self._path(name), form=None) as rows:
            rows.wait()
            return len(rows)

    def _assign(self, values: Mapping[str, Any]) -> None:
        from rftkit import datasets

        read = {
            name: (datasets.read_tools if name == "tools" else datasets.read_json)(value)
            for name, value in values.items()
            if name in SPECS and isinstance(value, str | Path)
        }
        method = values.get("method", self.method)
        check_names(values.get("hyperparameters"), values.get("metadata"), method)
        _refuse_settings(values)
        super()._assign({**values, **read})

    def _changed(self, names: Set[str]) -> None:
        """Discard results when the choices on which they depend change."""
        if "dataset" in names and self.dataset:
            self._assign(_dataset_state(self.dataset))
            names = {*names, "train"}
        if "method" in names:
            taken = METHODS[self.method]
            kept = {name: value for name, value in self.hyperparameters.items() if name in taken}
            self.hyperparameters = kept
        if names & _CHECKED:
            self._checks.clear()
        if names & {*_CHECKED, *_ESTIMATED_FROM}:
            self._checks.pop("learnability", None)
            self._estimate = None

    # live

    def _build(self) -> Sequence[ipywidgets.Widget]:
        self._top, self._found, self._body = self._html(), self._html(), self._html()
        self._form = form = LaunchForm(self._set_typed, self._guard)
        models = [model.id for model in self._client.models.list()]
        self._model = ipywidgets.Combobox(options=models, description="Model", **wide())
        self._bind("model", self._model)
        chooser = ipywidgets.Combobox(
            options=_datasets(),
            description="Dataset",
            placeholder="a folder or a bundled dataset; or choose files below",
            continuous_update=False,
            **wide(),
        )
        self._bind("dataset", chooser)
        self._overrides = {name: self._override(name) for name in CHECKS}
        self._methods = ipywidgets.ToggleButtons(
            options=list(METHODS),
            description="Method",
            tooltips=list(_METHODS),
            style={"button_width": "auto", "description_width": "5rem"},
        )
        self._bind("method", self._methods)
        self._choice = ipywidgets.ToggleButtons(
            options=[(title, name) for name, title in SECTIONS.items()],
            style={"button_width": "auto"},
        )
        self._bind("section", self._choice)
        self._go = self._button("Start the job", self._press_start, button_style="primary")
        buttons = [
            self._button(
                "1. Run checks", self.check, "Check the data and the grader; takes seconds"
            )
        ]
        if self._has_probes:
            tip = "Run two steps to estimate time, memory, cost and learnability"
            buttons.append(self._button("2. Estimate", self.estimate, tip))
        self._watch = self._button("Watch it", self._press_watch, "Watch the job in this panel")
        self._said = self._html()
        buttons += [self._go, self._said, self._watch, self._status]
        self._monitored = ipywidgets.VBox()
        return [
            self._top,
            self._methods,
            chooser,
            form.texts["train"],
            form.texts["valid"],
            self._model,
            ipywidgets.HBox([form.texts["suffix"], form.texts["seed"]], layout=wrapping()),
            form.more,
            ipywidgets.HBox(buttons, layout=wrapping()),
            self._monitored,
            self._found,
            self._choice,
            self._body,
            ipywidgets.HBox([*self._overrides.values()], layout=wrapping()),
        ]

    def _override(self, name: str) -> ipywidgets.Checkbox:
        box = ipywidgets.Checkbox(
            description=f"Override {name}", indent=False, layout=ipywidgets.Layout(width="auto")
        )

        def override() -> None:
            others = [each for each in self.overridden if each != name]
            self._set_typed("overridden", [*others, name] if box.value else others)

        box.observe(lambda _: self._guard(override), names="value")
        return box

    def _press_start(self) -> None:
        """Start the job once: a second click on the same settings starts no second one."""
        if self._is_started():
            return
        self._go.disabled = True
        try:
            self._start()
        finally:
            self._draw_if_shown()

    def _press_watch(self) -> None:
        from rftkit.widgets.monitor import JobMonitor

        for monitor in self._monitors:
            monitor.close()
        self._monitors = [JobMonitor(self.job_id, client=self._client)]
        self._monitored.children = [self._monitors[0].widget()]

    def _is_started(self) -> bool:
        """Whether a job with exactly these settings was started from here."""
        return bool(self.job_id) and self._started == self.request()

    def close(self) -> None:
        """Stop background work and watching. The job continues."""
        super().close()
        for monitor in self._monitors:
            monitor.close()

    def _draw_if_shown(self) -> None:
        """Redraw; in a headless run, replace the output that was shown before."""
        if self._root is not None:
            self._draw()
        elif not live():
            self._show_again()

    def _draw(self) -> None:
        self._top.value = self._summary() + (_next_cell(self.job_id) if self.job_id else Html())
        self._found.value = self._result()
        self._body.value = self._section(self.section)
        self._form.show(self.state, learns_from_grader=self._learns_from_grader)
        held = {check.name for check in self.checks if not check.is_green}
        for name, box in self._overrides.items():
            box.value = name in self.overridden
            box.layout.display = "" if name in held else "none"
        is_blocked = not held <= set(self.overridden)
        self._go.disabled = is_blocked or self._is_started()
        self._said.value = note(f"✓ Started {self.job_id}") if self.job_id else Html()
        self._watch.layout.display = "" if self.job_id else "none"


_NO_PROBE = (
    "This service does not support probes, so it cannot estimate time and cost, or report what "
    "auto means. It would run and bill the whole job."
)
_CHECKED = {"method", "train", "valid", *SPECS}
_ESTIMATED_FROM = ("model", "hyperparameters", "metadata", "max_episode_steps")
_METHODS = (
    "Learn from graded answers",
    "Learn from the answers of the rows",
    "Learn from pairs of answers, one better than the other",
)


def _datasets() -> list[str]:
    """The folders with training rows here, and the names of the bundled datasets."""
    from rftkit import datasets

    own = sorted(str(path.parent) for path in Path().glob("*/train.jsonl"))
    return [*own, *datasets.bundled_names()]


def _dataset_state(name: str) -> dict[str, Any]:
    """The state that a dataset provides."""
    from rftkit import datasets
    from rftkit.datasets import forms

    found = datasets.load(name)
    with datasets.open(found.train, form=None) as rows:
        method = forms.METHODS[rows.form]
    return {
        "method": method,
        "train": str(found.train),
        "valid": str(found.valid or ""),
        "grader": found.grader or {},
        "response_format": found.response_format,
        "tools": found.tools or [],
    }


def _last_message(update: jobs.Update) -> str:
    messages = [event.get("message", "") for event in update.events]
    return messages[-1] if messages else str(update.job.status)


def _next_cell(job_id: str) -> Html:
    code = f'JobMonitor("{job_id}")'
    return html('<div class="rk"><p class="rk-note">Watch it with <code>{}</code></p></div>', code)


def _refuse_settings(values: Mapping[str, Any]) -> None:
    """Refuse settings of the job that are given as the panel's own, and say where they go."""
    for name, value in values.items():
        if name in EVERY:
            raise InputError(
                f"{name} is a hyperparameter: set hyperparameters={{{name!r}: {value!r}}}"
            )
        if name in KNOBS:
            raise InputError(f"{name} is metadata: set metadata={{{name!r}: {str(value)!r}}}")
