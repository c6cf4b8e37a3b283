"""Every body validates against the SDK's own types, but for what the SDK itself mistypes."""

from __future__ import annotations

import time
from typing import Any

import openai
import pytest
from conftest import GRADER, ROW, Served
from pydantic import ValidationError

MODEL: Any = "rftkit-tiny"
USER: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
def strict(served: Served) -> openai.OpenAI:
    """A client that refuses whatever does not fit its types."""
    return openai.OpenAI(
        base_url="http://localhost/v1", api_key="local", http_client=served.http, max_retries=0,
        _strict_response_validation=True,
    )  # fmt: skip


def test_files_and_models(strict: openai.OpenAI) -> None:
    file = strict.files.create(file=("a.jsonl", ROW), purpose="fine-tune")
    assert strict.files.retrieve(file.id)
    assert strict.files.list().data
    assert strict.files.delete(file.id)
    assert strict.models.list().data
    assert strict.models.retrieve(MODEL)


def test_chat_and_responses(strict: openai.OpenAI, served: Served) -> None:
    token = {"token": "h", "logprob": -0.5, "top": [{"token": "h", "logprob": -0.5}]}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    served.link.say = lambda request: {"text": "h", "logprobs": [token], "tool_calls": [call]}
    chat = strict.chat.completions
    assert chat.create(model=MODEL, messages=USER, logprobs=True, tools=[tool], n=2)
    usage: Any = {"include_usage": True}
    assert list(chat.create(model=MODEL, messages=USER, stream=True, stream_options=usage))
    made = strict.responses.create(model=MODEL, input="hi")
    assert strict.responses.retrieve(made.id)
    assert list(strict.responses.create(model=MODEL, input="hi", stream=True))


def test_jobs_but_for_what_is_mistyped_upstream(strict: openai.OpenAI, served: Served) -> None:
    job = served.create_job()
    served.platform.store.add_checkpoint(job.id, 1, "ft:x", {"train_mean_reward": 0.5}, "/f")
    served.platform.store.add_event(job.id, "s", type="metrics", data={"step": 1})
    with pytest.raises(openai.APIResponseValidationError) as caught:
        strict.fine_tuning.jobs.retrieve(job.id)
    cause = caught.value.__cause__
    assert isinstance(cause, ValidationError)
    assert {error["loc"][0] for error in cause.errors()} == {"hyperparameters"}
    assert strict.fine_tuning.jobs.list_events(job.id).data
    assert strict.fine_tuning.jobs.checkpoints.list(job.id).data


def test_graders(strict: openai.OpenAI) -> None:
    graders = strict.fine_tuning.alpha.graders
    assert graders.validate(grader=GRADER)  # type: ignore[arg-type]
    assert graders.run(grader=GRADER, model_sample="x", item={"answer": "x"})  # type: ignore[arg-type]


def test_evals(strict: openai.OpenAI) -> None:
    record = strict.evals.create(
        data_source_config={"type": "custom", "item_schema": {"type": "object"}},
        testing_criteria=[GRADER],  # type: ignore[list-item]
        name="mine",
        metadata={},
    )
    assert strict.evals.retrieve(record.id)
    assert strict.evals.list().data
    assert strict.evals.update(record.id, name="other")
    assert strict.evals.delete(record.id)


SAMPLE = ("error", "max_completion_tokens", "seed", "temperature", "top_p", "model")
"""Required by the types, null for what was not sampled here."""


def test_eval_runs_but_for_what_is_null(strict: openai.OpenAI, served: Served) -> None:
    record = served.client.evals.create(
        data_source_config={"type": "custom", "item_schema": {"type": "object"}},
        testing_criteria=[GRADER],  # type: ignore[list-item]
    )
    source: Any = {
        "type": "jsonl",
        "source": {"type": "file_content", "content": [{"item": {"answer": "x"}}]},
    }
    run = served.client.evals.runs.create(record.id, data_source=source)
    while run.status in ("queued", "in_progress"):
        time.sleep(0.01)
        run = served.client.evals.runs.retrieve(run.id, eval_id=record.id)
    with pytest.raises(openai.APIResponseValidationError) as caught:
        strict.evals.runs.retrieve(run.id, eval_id=record.id)
    assert isinstance(caught.value.__cause__, ValidationError)
    wrong = {error["loc"][0] for error in caught.value.__cause__.errors()}
    assert wrong <= {"error", "metadata", "name", "model"}
    with pytest.raises(openai.APIResponseValidationError) as caught:
        strict.evals.runs.output_items.list(run.id, eval_id=record.id)
    assert isinstance(caught.value.__cause__, ValidationError)
    for error in caught.value.__cause__.errors():
        assert error["loc"][2] == "sample"
        assert error["loc"][3] in SAMPLE
