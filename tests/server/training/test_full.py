"""Jobs that train every weight: they learn, are served, exported and gone on from, or refused."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from in_process import add_job, messages, run
from safetensors.torch import load_file
from server.training.test_job import create, ended, until, validation
from server.worker.test_weights import exported, logprobs_here, logprobs_there

from rftkit import jobs
from rftkit.errors import InputError, NotFoundError, PlatformError
from rftkit.jobs.weights import fetch_weights
from rftkit.server.engine.torch import engine as torch_engine
from rftkit.server.training.plan import Plan
from rftkit.server.training.rft_plan import make_plan
from rftkit.server.worker.worker import Worker

FULL = {"tuning": "full"}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, made_models: Path) -> Iterator[Worker]:
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(made_models, home / "models")
    worker = Worker(home, lambda message: None)
    yield worker
    worker.store.close()


@pytest.fixture(scope="module")
def trained(worker: Worker) -> str:
    """The final model of a job that trained every weight."""
    job = run(worker, add_job(worker, metadata=FULL, learning_rate_multiplier=30))
    assert job.fine_tuned_model is not None
    return job.fine_tuned_model


def test_a_job_learns_is_served_and_comes_out_whole(
    platform: openai.OpenAI, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    given = {**FULL, "lora_rank": "4"}
    job = until(platform, create(platform, metadata=given, learning_rate_multiplier=30).id, ended)
    assert job.status == "succeeded", job.error
    rewards = validation(platform, job.id)
    assert rewards[16] > rewards[0] + 0.2
    said = [event["message"] for event in jobs.events(platform, job.id)]
    assert any(text.startswith("Every weight of rftkit-tiny learns") for text in said)
    [started] = [text for text in said if "started" in text]
    assert "tuning=full" in started
    assert "lora_rank has no effect: every weight is trained" in started

    user: Any = [{"role": "user", "content": "copy: abc"}]
    answer = platform.chat.completions.create(
        model=job.fine_tuned_model, messages=user, temperature=0, max_completion_tokens=8,
        logprobs=True,
    )  # fmt: skip
    assert answer.choices[0].message.content == "abc"
    with pytest.raises(
        PlatformError, match="trained in full and has no adapter; add --format merged"
    ):
        fetch_weights(platform, job.fine_tuned_model, tmp_path / "adapter")
    fetch_weights(platform, job.fine_tuned_model, tmp_path / "whole", format="merged")
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole")

    with pytest.raises(openai.BadRequestError, match="trained in full") as refusal:
        create(platform, model=job.fine_tuned_model)
    assert refusal.value.param == "metadata.tuning"
    further = create(platform, model=job.fine_tuned_model, metadata=FULL)
    further = until(platform, further.id, ended)
    assert further.status == "succeeded", further.error
    assert validation(platform, further.id)[0] == pytest.approx(rewards[16], abs=0.05)


def test_transformers_loads_the_same_bits(worker: Worker, trained: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = exported(worker, trained, tmp_path / "whole", merged=True)
    there = AutoModelForCausalLM.from_pretrained(folder)
    known = worker.store.model(trained)
    assert known is not None
    for name, tensor in load_file(Path(known.folder) / "weights.safetensors").items():
        assert torch.equal(there.get_parameter(name), tensor), name
    assert there.get_output_embeddings().weight is there.get_input_embeddings().weight
    prompt, answer, here = logprobs_here(worker, trained)
    torch.testing.assert_close(logprobs_there(there, prompt, answer), here, atol=1e-4, rtol=1e-4)
    with pytest.raises(NotFoundError, match="--format merged"):
        exported(worker, trained, tmp_path / "adapter", merged=False)


def test_every_weight_goes_on_from_adapters(worker: Worker) -> None:
    adapted = run(worker, add_job(worker)).fine_tuned_model
    assert adapted is not None
    job = run(worker, add_job(worker, model=adapted, metadata=FULL))
    assert job.status == "succeeded", job.error


@pytest.mark.parametrize("what", ["memory", "disk"])
def test_what_does_not_fit_is_refused_before_it_starts(
    worker: Worker, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "memory":
        monkeypatch.setattr(torch_engine, "available_bytes", lambda device: 10**9)
    else:
        usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1, 1)
        monkeypatch.setattr(
            "rftkit.server.training.memory_check.shutil.disk_usage", lambda folder: usage
        )
    job = run(worker, add_job(worker, metadata=FULL))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["param"] == "metadata.tuning"
    assert f"GB of {what} in addition to the model, and" in job.error["message"]
    assert "`tuning` = lora" in job.error["message"]
    assert not any("started" in text for text in messages(worker, job))
    assert run(worker, add_job(worker)).status == "succeeded"


def test_the_plan_says_what_learns_and_how_fast(worker: Worker) -> None:
    job = add_job(worker, metadata={**FULL, "lora_alpha": "8"}, learning_rate_multiplier=2)
    plan = make_plan(job, 8)
    assert plan.lora is None
    assert plan.learning_rate == 2e-4
    assert plan.ignored == {"lora_alpha": "every weight is trained, so there are no adapters"}
    stored = plan.to_dict()
    del stored["tuning"]  # a plan of before there was a choice
    assert Plan(**stored).lora is not None
    worker.store.update_job(job.id, status="cancelled")
    with pytest.raises(InputError, match="one of lora, full, found 'half'"):
        make_plan(add_job(worker, metadata={"tuning": "half"}), 8)
