"""Every method of the SDK's resources that matter here, called; the table is `server/methods.md`.

A method that a new SDK brings fails this test until it has a line. `yes`: it works as the types
say. `no`: refused with a 400 that says so.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import GRADER, ROW, Served
from openai._resource import SyncAPIResource

import rftkit.server

GOLDEN = Path(rftkit.server.__file__).parent / "methods.md"
"""The one table: what `rftkit serve --routes` prints. UPDATE_GOLDEN=1 writes it."""
RESOURCES = (
    "files",
    "fine_tuning",
    "evals",
    "models",
    "chat",
    "responses",
    "embeddings",
    "batches",
)
MODEL: Any = "rftkit-tiny"
TUNED = "ft:rftkit-tiny:local::x:ckpt-step-1"
USER: Any = [{"role": "user", "content": "hi"}]
CONFIG: Any = {"type": "custom", "item_schema": {"type": "object"}}
SOURCE: Any = {
    "type": "jsonl",
    "source": {"type": "file_content", "content": [{"item": {"answer": "x"}}]},
}

NOTES = {
    "chat.completions.create": "function tools only; no penalties, no audio",
    "responses.create": "function tools only; no `background`, `truncation` drops nothing",
    "responses.cancel": "refused as hosted: only background responses can be, and there are none",
    "embeddings.create": "mean-pooled hidden states of a served model; no `dimensions`, text only",
    "fine_tuning.jobs.create": "metadata `branch_from` = JOB@STEP continues another job",
    "fine_tuning.checkpoints.permissions.create": "kept and listed; one home has one owner",
    "responses.connect": "WebSocket",
    "batches.create": "chat completions, responses and embeddings",
}


def methods_of(resource: Any, path: str) -> Iterator[str]:
    for name in sorted(dir(type(resource))):
        if name.startswith(("_", "with_")):
            continue
        if inspect.isfunction(inspect.getattr_static(type(resource), name)):
            yield f"{path}.{name}"
        elif isinstance(inner := getattr(resource, name), SyncAPIResource):
            yield from methods_of(inner, f"{path}.{name}")


class Calls:
    """One call per method, with what it needs made before it."""

    def __init__(self, served: Served) -> None:
        self.served, self.client = served, served.client
        served.platform.store.add_model(TUNED, MODEL, None, "/f", 1)
        served.platform.runner.wake = lambda: None
        served.platform.batches.wake = lambda: None

    def call(self, path: str) -> Any:
        """Call the method at a dotted path."""
        method: Any = self.client
        for name in path.split("."):
            method = getattr(method, name)
        arguments: Callable[[], Any] = getattr(self, path.replace(".", "_"))
        positional, named = arguments()
        result = method(*positional, **named)
        if hasattr(result, "__enter__") and "create" not in path and "content" not in path:
            with result as stream:
                return list(stream)
        return result

    def __getattr__(self, name: str) -> Callable[[], Any]:
        """What is not listed below takes the id of a fresh object of its resource."""
        for prefix, make in MAKERS.items():
            if name.startswith(prefix):
                return lambda: make(self)
        raise AttributeError(name)

    def job(self, status: str | None = None) -> str:
        job = self.served.create_job()
        if status:
            self.served.platform.store.update_job(job.id, status=status)
        return str(job.id)

    def record(self) -> Any:
        return self.client.evals.create(data_source_config=CONFIG, testing_criteria=[GRADER])  # type: ignore[list-item]

    def run(self) -> Any:
        return self.client.evals.runs.create(self.record().id, data_source=SOURCE)

    def item(self) -> tuple[Any, str]:
        from rftkit.server.training.eval_records import GradedSample, item_from

        run = self.run()
        store = self.served.platform.store
        item = item_from(store.run(run.id), GradedSample(row=0, item={}, results=[]))
        store.add_items([item])
        return run, item.id

    def permission(self) -> str:
        made = self.client.fine_tuning.checkpoints.permissions.create(TUNED, project_ids=["p"])
        return made.data[0].id

    def chat(self) -> str:
        return self.client.chat.completions.create(model=MODEL, messages=USER, store=True).id

    def batch(self) -> Any:
        line = b'{"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {}}'
        file = self.client.files.create(file=("in.jsonl", line), purpose="batch")
        return {
            "input_file_id": file.id, "endpoint": "/v1/responses", "completion_window": "24h",
        }  # fmt: skip

    def response(self) -> str:
        return self.client.responses.create(model=MODEL, input="hi").id


def _body(**body: Any) -> Callable[[Calls], Any]:
    return lambda calls: ((), body)


def _run(calls: Calls) -> Any:
    run = calls.run()
    return (run.id,), {"eval_id": run.eval_id}


def _item(calls: Calls) -> Any:
    run, item_id = calls.item()
    return (item_id,), {"eval_id": run.eval_id, "run_id": run.id}


CHAT = _body(model=MODEL, messages=USER)
RESPONSE = _body(model=MODEL, input="hi")
PERMISSIONS = "fine_tuning_checkpoints_permissions_"
MAKERS: dict[str, Callable[[Calls], Any]] = {
    "batches_create": lambda calls: ((), calls.batch()),
    "batches_list": _body(),
    "batches_": lambda calls: ((calls.client.batches.create(**calls.batch()).id,), {}),
    "files_create": _body(file=("a.jsonl", ROW), purpose="fine-tune"),
    "files_list": _body(),
    "files_": lambda calls: ((calls.served.upload(),), {}),
    "fine_tuning_alpha_graders_run": _body(grader=GRADER, model_sample="x", item={"answer": "x"}),
    "fine_tuning_alpha_graders_validate": _body(grader=GRADER),
    f"{PERMISSIONS}create": lambda calls: ((TUNED,), {"project_ids": ["p"]}),
    f"{PERMISSIONS}delete": lambda calls: (
        (calls.permission(),), {"fine_tuned_model_checkpoint": TUNED},
    ),
    PERMISSIONS: lambda calls: ((TUNED,), {}),
    "fine_tuning_jobs_create": lambda calls: ((), {
        "model": MODEL, "training_file": calls.served.upload(),
        "validation_file": calls.served.upload(),
        "method": {"type": "reinforcement", "reinforcement": {"grader": GRADER}},
    }),
    "fine_tuning_jobs_list_events": lambda calls: ((calls.job(),), {}),
    "fine_tuning_jobs_list": _body(),
    "fine_tuning_jobs_pause": lambda calls: ((calls.job("running"),), {}),
    "fine_tuning_jobs_resume": lambda calls: ((calls.job("paused"),), {}),
    "fine_tuning_jobs_": lambda calls: ((calls.job(),), {}),
    "evals_create": _body(data_source_config=CONFIG, testing_criteria=[GRADER]),
    "evals_list": _body(),
    "evals_runs_create": lambda calls: ((calls.record().id,), {"data_source": SOURCE}),
    "evals_runs_list": lambda calls: ((calls.record().id,), {}),
    "evals_runs_output_items_list": _run,
    "evals_runs_output_items_retrieve": _item,
    "evals_runs_": _run,
    "evals_": lambda calls: ((calls.record().id,), {}),
    "models_list": _body(),
    "models_": lambda calls: ((TUNED,), {}),
    "chat_completions_create": CHAT,
    "chat_completions_parse": CHAT,
    "chat_completions_stream": CHAT,
    "chat_completions_list": _body(),
    "chat_completions_update": lambda calls: ((calls.chat(),), {"metadata": {"a": "b"}}),
    "chat_completions_": lambda calls: ((calls.chat(),), {}),
    "responses_create": RESPONSE,
    "responses_parse": RESPONSE,
    "responses_stream": RESPONSE,
    "responses_compact": RESPONSE,
    "responses_input_tokens_count": RESPONSE,
    "responses_": lambda calls: ((calls.response(),), {}),
    "embeddings_create": _body(model=MODEL, input="hi"),
}  # fmt: skip
"""Longest names first where one is the beginning of another."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_method_is_called_and_the_table_says_how_it_went(served: Served) -> None:
    calls = Calls(served)
    lines = ["| method of the `openai` client | works | what differs |", "|---|---|---|"]
    paths = [path for root in RESOURCES for path in methods_of(getattr(served.client, root), root)]
    for path in sorted(paths, key=lambda path: path == "models.delete"):
        works = "yes"
        try:
            if path == "responses.connect":  # needs a WebSocket
                works = "no"
            else:
                calls.call(path)
        except openai.BadRequestError as error:
            works = "no" if error.code == "unsupported" else f"fails: {error.message}"
            works = "no" if path == "responses.cancel" else works
        if works == "yes" and path in NOTES:
            works = "partly" if "only" in NOTES[path] else "yes"
        lines.append(f"| `{path}` | {works} | {NOTES.get(path, '')} |")
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text("\n".join(lines) + "\n")
    assert "\n".join(lines) + "\n" == GOLDEN.read_text()


def test_a_kept_chat_is_found_changed_and_forgotten(served: Served) -> None:
    chats = served.client.chat.completions
    kept = chats.create(model=MODEL, messages=USER, store=True, metadata={"team": "blue"})
    chats.create(model=MODEL, messages=USER, metadata={"team": "blue"})
    streamed = list(chats.create(model=MODEL, messages=USER, store=True, stream=True))
    assert [chat.id for chat in chats.list()] == [kept.id, streamed[0].id]
    assert [chat.id for chat in chats.list(metadata={"team": "blue"})] == [kept.id]
    assert chats.retrieve(kept.id).choices[0].message.content == "hello"
    assert chats.retrieve(streamed[0].id).choices[0].message.content == "hello"
    assert [message.content for message in chats.messages.list(kept.id)] == ["hi"]
    chats.update(kept.id, metadata={"team": "red"})
    assert [chat.id for chat in chats.list(metadata={"team": "red"})] == [kept.id]
    assert chats.delete(kept.id).deleted
    with pytest.raises(openai.NotFoundError):
        chats.retrieve(kept.id)
