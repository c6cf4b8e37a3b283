"""Playground: run a job's base model, checkpoints and final model on one prompt, side by side.

Answers stream in. With a row of the dataset and a grader they are graded at once, by the graders of
the training. If the job has tools, they are called, and the model continues as in a rollout. To run
models on many rows, use `rftkit.evals`.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets
from traitlets import Bool, Dict, Float, Int, List, Unicode

from rftkit import jobs, views
from rftkit.errors import InputError
from rftkit.evals.answers import of_episode
from rftkit.graders import Sample, compile_grader
from rftkit.hyperparameters import EPISODE_STEPS
from rftkit.prompts import Prompt, read_prompt
from rftkit.views.markup import Html
from rftkit.widgets.panel import Panel, live
from rftkit.widgets.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from openai import OpenAI

__all__ = ["Playground", "models_of"]

DRAW_SECONDS = 0.1
"""Seconds between two drawings of an answer that streams in."""
MAX_AT_ONCE = 8
UNFINISHED = "! not finished: it was still being written or graded when this was saved"
"""The state of an answer in a copy that does not change any more."""

Answer = dict[str, Any]
"""`model`, `text`, `tool_calls`, `grade`, `seconds`, and `state` while it is not done. With tools
also `messages`: the turns before the last one, and the results of their calls."""


class Playground(Panel):
    """Run several models on the same prompt and see their answers side by side.

    `Playground("ftjob-…")` offers the job's base model, its checkpoints and its final model, with
    the job's grader and response format; `Playground(options={"a": "model-a", …})` any models.
    `ask()` runs the models; `data()` returns the answers as a table.

    Args:
        job_id: None or empty with `options`, or for the newest job.
        dataset: a JSONL file, a dataset folder or a bundled one's name (its test rows); default
            the job's validation file.
        client: default `rftkit.connect()`; any `openai.OpenAI`.
        state: `chosen` (labels), `prompt` or `row`, `temperature`, `seed`,
            `max_completion_tokens`, `constrained`, `prompt_file` (of `rftkit prompt optimize`),
            `grader`, `response_format`.
    """

    options = Dict(help="Label -> model that can be selected.")
    chosen = List(Unicode(), help="Labels of the models to run.")
    prompt = Unicode("", help="The prompt; empty with a row.")
    row = Int(
        None,
        allow_none=True,
        help="Row of the dataset, from 0 (the panel shows 1); None for the prompt.",
    )
    temperature = Float(0.0, help="0 is the most likely answer.")
    seed = Int(None, allow_none=True, help="With one, the same answers are sampled again.")
    max_completion_tokens = Int(256, help="A longer answer is cut off.")
    constrained = Bool(True, help="Whether answers follow the response format.")
    prompt_file = Unicode("", help="A prompt file put before each prompt; empty for none.")
    grader = Dict(allow_none=True, default_value=None, help="Grader, as on the wire.")
    response_format = Dict(allow_none=True, default_value=None, help="As the job had it.")

    def __init__(
        self,
        job_id: str | None = None,
        *,
        dataset: str | Path = "",
        client: OpenAI | None = None,
        **state: Any,
    ) -> None:
        """Fetch the job, with its grader and response format."""
        from rftkit.client import connect

        self._client = client or connect()
        self._answers: dict[str, Answer] = {}
        self._asked: dict[str, Any] | None = None
        self._before = Prompt()
        self._tools_of, self._most_turns = "", 1
        found: dict[str, Any] = {}
        self._dataset = str(dataset)
        if job_id or "options" not in state:
            found, file_id = self._job_state(job_id)
            self._dataset = self._dataset or file_id
        self._drawn_at = 0.0
        super().__init__(**{**found, **state})
        if not self.chosen:
            self.set(chosen=_ends(list(self.options)))

    def _job_state(self, job_id: str | None) -> tuple[dict[str, Any], str]:
        if not job_id and not jobs.latest(self._client):
            raise InputError(
                "there is no job yet; start one, or name models: Playground(options={'base': …})"
            )
        found = jobs.find(self._client, job_id or "")
        job: dict[str, Any] = self._client.fine_tuning.jobs.retrieve(found).to_dict(warnings=False)
        given = (job.get("method") or {}).get("reinforcement") or job.get("measured_by") or {}
        tokens = (job.get("metadata") or {}).get("max_completion_tokens")
        if given.get("tools"):
            self._tools_of, self._most_turns = (
                found,
                given.get("max_episode_steps") or EPISODE_STEPS,
            )
        state = {
            "options": models_of(self._client, job),
            "grader": given.get("grader"),
            "response_format": given.get("response_format"),
        }
        state |= {"max_completion_tokens": int(tokens)} if tokens else {}
        return state, str(job.get("validation_file") or "")

    # what it shows

    def data(self) -> pd.DataFrame:
        """One row per selected model: text, tool calls, whether it was cut off, reward, error …"""
        import pandas as pd

        rows = []
        for label, answer in self._answers.items():
            grade = answer.get("grade") or {}
            rows.append(
                {
                    "label": label,
                    "model": answer["model"],
                    "text": answer["text"],
                    "tool_calls": _all_calls(answer),
                    "truncated": answer.get("truncated"),
                    "reward": grade.get("reward"),
                    **(grade.get("sub_rewards") or {}),
                    "seconds": answer.get("seconds"),
                    "error": answer.get("error"),
                }
            )
        return pd.DataFrame(rows)

    def to_html(self, *, max_bytes: int = 300_000) -> Html:
        """The prompt, and the answers side by side, as far as they have come."""
        return self._shown(
            {
                label: {**answer, "state": UNFINISHED} if _is_open(answer) else answer
                for label, answer in self._answers.items()
            }
        )

    def _shown(self, answers: dict[str, Answer]) -> Html:
        if self._asked is None:
            labels = ", ".join(self.chosen) or "no model"
            return views.note(f"Type a prompt or choose a row, then click Ask. Selected: {labels}.")
        return views.one_row(self._asked, answers)

    # what it does

    def ask(self, prompt: str | None = None, *, row: int | None = None) -> None:
        """Run the selected models.

        Args:
            prompt: your own prompt; its answers are not graded.
            row: a row of the dataset; its answers are graded.
        """
        if prompt is not None:
            self.set(prompt=prompt, row=None)
        elif row is not None:
            self.set(row=row)
        if not self.chosen:
            raise InputError("choose at least one model")
        item = self._item()
        self._asked = item
        self._answers = {
            label: {"model": self.options[label], "text": "", "state": "waiting …"}
            for label in self.chosen
        }
        self._show(force=True)
        self._work(lambda task: self._ask_all(task, item), self._keep, "Asking")

    def compare(self, num_rows: int = 16) -> Html:
        """Run the selected models on rows spread over the dataset, and show a card for each row.

        This is for reading answers. For intervals and several runs, use `rftkit.evals`.
        """
        from rftkit import evals
        from rftkit.client import judge_call

        stride = max(1, -(-len(self._rows) // num_rows))
        rows = self._rows[::stride]
        settings = self._settings({})
        answers = {
            label: evals.ask(
                self._client, self.options[label], rows, prompt=self._before, **settings
            )
            for label in self.chosen
        }
        if not self.grader:
            raise InputError("there is no grader to compare with: set(grader=…)")
        with compile_grader(self.grader, purpose="eval", complete=judge_call()) as grader:
            grades = {label: evals.grade(grader, given, rows) for label, given in answers.items()}
        return views.answers({"rows": evals.side_by_side(rows, answers, grades)})

    def _item(self) -> dict[str, Any]:
        """The row, or the prompt as the only message."""
        if self.row is None:
            if not self.prompt.strip():
                raise InputError("type a prompt, or choose a row")
            return {"messages": [{"role": "user", "content": self.prompt}]}
        rows = self._rows
        if not 0 <= self.row < len(rows):
            raise InputError(
                f"there is no row {self.row + 1}; there are 1 to {len(rows)} (from row=0 in code)"
            )
        item: dict[str, Any] = rows[self.row].item
        return item

    @cached_property
    def _rows(self) -> list[Any]:
        """The rows that can be chosen."""
        from rftkit import datasets
        from rftkit.rows import read_rows

        if self._dataset.startswith("file-"):
            content = self._client.files.content(self._dataset).content
            return list(read_rows(content.split(b"\n"), path=self._dataset))
        if not self._dataset:
            raise InputError("there is no dataset to choose a row from: Playground(dataset=…)")
        found = datasets.load(self._dataset)
        return datasets.read(found.test or found.valid or found.train)

    def _ask_all(self, task: Task, item: dict[str, Any]) -> None:
        lock = threading.Lock()
        answers = self._answers

        def one(label: str) -> None:
            answer, started = answers[label], time.perf_counter()
            sample = self._episode(task, item, answer, lock)
            answer["seconds"] = time.perf_counter() - started
            answer["state"] = "grading …" if sample and self._grades(item) else ""
            if sample is None:
                answer["state"] = f"! failed: {answer['error']}"
            self._show(force=True)

        with ThreadPoolExecutor(MAX_AT_ONCE) as pool:
            list(pool.map(one, list(answers)))
        if self._grades(item) and not task.cancelled:
            self._grade(item, answers)

    def _episode(
        self, task: Task, item: dict[str, Any], answer: Answer, lock: threading.Lock
    ) -> Sample | None:
        """Stream answers until one calls no tool of the job; None if a request or a tool failed."""
        trace, said = f"trace_{uuid.uuid4().hex}", list(item["messages"])
        for left in reversed(range(self._most_turns)):
            if self._stream(task, {**item, "messages": said}, answer, lock) is None:
                return None
            calls = answer["tool_calls"] if item.get("tools") and self._tools_of else []
            if not calls or not left or task.cancelled or answer["truncated"]:
                break
            turn = {"role": "assistant", "content": answer["text"], "tool_calls": calls}
            results = self._results(calls, item, trace, answer)
            if results is None:
                return None
            with lock:
                answer["messages"] = [*answer.get("messages", ()), turn, *results]
            said += [turn, *results]
        return self._sample(answer)

    def _results(
        self, calls: Sequence[dict[str, Any]], item: dict[str, Any], trace: str, answer: Answer
    ) -> list[dict[str, Any]] | None:
        """The results of the job's tools; None if one failed."""
        answer["state"] = "calling tools …"
        self._show()
        results = []
        for call in calls:
            given = call["function"]
            reply = jobs.call_tool(
                self._client, self._tools_of, given["name"], given["arguments"],
                item=item, call_id=call["id"], trace_id=trace,
            )  # fmt: skip
            if reply is None or reply["kind"] == "failed":
                why = reply["text"] if reply else "the service does not call tools"
                answer["error"] = f"the tool {given['name']} failed: {why}"
                return None
            results.append({"role": "tool", "tool_call_id": call["id"], "content": reply["text"]})
        return results

    def _stream(
        self, task: Task, item: dict[str, Any], answer: Answer, lock: threading.Lock
    ) -> Sample | None:
        """Stream one answer and show it; None if the request failed."""
        from openai import OpenAIError
        from openai.lib.streaming.chat import ChatCompletionStreamState

        from rftkit.client import api_message

        heard, finish = ChatCompletionStreamState(), None
        messages: Any = self._before.before(item["messages"])
        try:
            for chunk in self._client.chat.completions.create(
                stream=True,
                model=answer["model"],
                messages=messages,
                **self._settings(item),
            ):
                if task.cancelled:
                    break
                if chunk.choices:
                    heard.handle_chunk(chunk)
                    message = heard.current_completion_snapshot.choices[0].message
                    with lock:
                        answer["text"] = message.content or ""
                        answer["tool_calls"] = [_plain(call) for call in message.tool_calls or []]
                    finish = chunk.choices[0].finish_reason or finish
                    answer["state"] = "answering …"
                    self._show()
        except OpenAIError as error:
            answer["error"] = api_message(error) or str(error)
            return None
        answer["truncated"] = finish == "length"
        return self._sample(answer)

    def _settings(self, item: dict[str, Any]) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "temperature": self.temperature,
            "max_completion_tokens": self.max_completion_tokens,
        }
        if self.seed is not None:
            settings["seed"] = self.seed
        if self.constrained and self.response_format:
            settings["response_format"] = self.response_format
        if item.get("tools"):
            settings["tools"] = item["tools"]
        return settings

    def _sample(self, answer: Answer) -> Sample:
        """The sample that the grader gets; with several turns it has all calls, as in a rollout."""
        sample = Sample.from_text(
            answer["text"],
            response_format=self.response_format if self.constrained else None,
            truncated=answer["truncated"],
            tool_calls=answer.get("tool_calls"),
            model=answer["model"],
        )
        return of_episode(sample, answer.get("messages", ()))

    def _grades(self, item: dict[str, Any]) -> bool:
        """Whether there is a grader, and a row with fields for it."""
        return bool(self.grader) and len(item) > 1

    def _grade(self, item: dict[str, Any], answers: dict[str, Answer]) -> None:
        from rftkit.client import judge_call

        answered = [answer for answer in answers.values() if "error" not in answer]
        with compile_grader(self.grader, purpose="eval", complete=judge_call()) as grader:
            grades = grader.grade_many([(self._sample(answer), item) for answer in answered])
        for answer, grade in zip(answered, grades, strict=True):
            answer["grade"], answer["state"] = asdict(grade), ""

    def _keep(self, _: None) -> None:
        """Show the complete answers; in a headless run, replace the earlier output."""
        self._show(force=True)
        if not live():
            self._show_again()

    def _show(self, *, force: bool = False) -> None:
        """Draw the answers in the live panel, at most every `DRAW_SECONDS`."""
        if self._root is None or not (force or time.monotonic() - self._drawn_at > DRAW_SECONDS):
            return
        self._drawn_at = time.monotonic()
        self._body.value = self._shown(self._answers)

    # live

    def _build(self) -> Sequence[ipywidgets.Widget]:
        def wide() -> ipywidgets.Layout:
            return ipywidgets.Layout(width="100%", max_width="46rem")

        style = {"description_width": "6rem"}
        self._models = ipywidgets.SelectMultiple(
            options=list(self.options),
            description="Models",
            rows=min(6, max(2, len(self.options))),
            style=style,
            layout=wide(),
        )
        self._models.observe(
            lambda _: self._guard(lambda: self._set_typed("chosen", list(self._models.value))),
            "value",
        )
        self._question = ipywidgets.Textarea(
            description="Prompt", placeholder="or choose a row", style=style, layout=wide()
        )
        self._bind("prompt", self._question)
        self._number = ipywidgets.Text(
            description="Row", placeholder="none", continuous_update=False, style=style
        )
        self._number.observe(lambda _: self._guard(self._read_row), "value")
        self._temperature = ipywidgets.FloatText(
            description="Temperature",
            step=0.1,
            style=style,
            layout=ipywidgets.Layout(width="11rem"),
        )
        self._bind("temperature", self._temperature)
        self._max_tokens = ipywidgets.IntText(
            description="Max tokens", style=style, layout=ipywidgets.Layout(width="12rem")
        )
        self._bind("max_completion_tokens", self._max_tokens)
        self._constrained = ipywidgets.Checkbox(description="response format", indent=False)
        self._bind("constrained", self._constrained)
        self._constrained.layout.display = "" if self.response_format else "none"
        self._body = self._html()
        row = ipywidgets.Layout(flex_flow="row wrap")
        go = self._button("Ask", self.ask, "Run the selected models", button_style="primary")
        self._file = ipywidgets.Text(
            description="Prompt file",
            placeholder="none",
            continuous_update=False,
            style=style,
        )
        self._bind("prompt_file", self._file)
        settings = [
            self._number,
            self._temperature,
            self._max_tokens,
            self._constrained,
            self._file,
        ]
        return [
            self._models,
            self._question,
            ipywidgets.HBox(settings, layout=row),
            ipywidgets.HBox([go, self._status], layout=row),
            self._body,
        ]

    def _read_row(self) -> None:
        typed = self._number.value.strip()
        if typed and not (typed.isdigit() and int(typed)):
            raise InputError(f"a row must be a number from 1, found {typed!r}")
        self._set_typed("row", int(typed) - 1 if typed else None)

    def _changed(self, names: Set[str]) -> None:
        if "prompt_file" in names or self.prompt_file:
            self._before = read_prompt(self.prompt_file) if self.prompt_file else Prompt()
        if unknown := [label for label in self.chosen if label not in self.options]:
            raise InputError(
                f"there is no model {unknown[0]!r}; choose from {', '.join(self.options)}"
            )

    def _draw(self) -> None:
        self._models.value = tuple(self.chosen)
        self._number.value = "" if self.row is None else str(self.row + 1)
        self._question.disabled = self.row is not None
        self._show(force=True)


def models_of(client: OpenAI, job: dict[str, Any]) -> dict[str, str]:
    """Label -> model of a job: base, each kept checkpoint, final; one label says `best`."""
    kept = jobs.checkpoints(client, job["id"])
    best, final = jobs.best(kept), job.get("fine_tuned_model")
    found = {"base": str(job["model"])}
    for each in kept:
        label = "final" if each.model == final else f"step {each.step}"
        found[f"{label}, best" if each is best else label] = each.model
    if final and final not in found.values():
        found["final"] = final
    return found


def _is_open(answer: Answer) -> bool:
    """Whether it is still being written or graded."""
    return bool(answer.get("state")) and "error" not in answer


def _all_calls(answer: Answer) -> list[dict[str, Any]]:
    """The calls of every turn."""
    before = [c for each in answer.get("messages", ()) for c in each.get("tool_calls", ())]
    return [*before, *(answer.get("tool_calls") or [])]


def _plain(call: Any) -> dict[str, Any]:
    """A call that was streamed, as chat completions spell it."""
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _ends(labels: Sequence[str]) -> list[str]:
    """The first and the last label: before and after training."""
    return list(dict.fromkeys([labels[0], labels[-1]])) if labels else []
