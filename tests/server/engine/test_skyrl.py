"""A job on a real Tinker server: SkyRL on this machine's processor, driven as a user would."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import openai
import pytest
from skyrl_server import NotInstalledError, in_float32, installed, serving
from tinker_client import JSON, path_with

import rftkit
import rftkit.client
from rftkit.server.engine import models
from rftkit.server.engine.tinker import remote
from rftkit.server.engine.tinker.remote import Remote

DATA = Path(__file__).parents[3] / "datasets" / "security_review"
MODEL = "smollm2-135m-instruct"
STEPS = 10
GRADER = {
    "type": "text_similarity", "name": "explanation", "evaluation_metric": "fuzzy_match",
    "input": "{{sample.output_text}}", "reference": "{{item.explanation}}",
}  # fmt: skip


def rows(name: str, count: int, tokenizer: Any) -> bytes:
    """Rows of security_review that ask for the explanation alone, as text.

    The protocol does not constrain decoding, and the base model says no JSON of its own accord.
    Prompts of up to 48 tokens: SkyRL pads all of them to one length then, and compiles once.
    """
    kept = []
    for line in (DATA / f"{name}.jsonl").read_text().splitlines():
        row = json.loads(line)
        asked = row["messages"][0]["content"].partition("\nIs it")[0]
        row["messages"] = [
            {"role": "system", "content": "Answer in one short sentence."},
            {"role": "user", "content": asked},
        ]
        if len(tokenizer.apply_chat_template(row["messages"])["input_ids"]) <= 45:
            kept.append(row)
    assert len(kept) >= count
    return "".join(json.dumps(row) + "\n" for row in kept[:count]).encode()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_security_review_gets_better_on_skyrl(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    try:
        installed()
    except NotInstalledError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"SkyRL cannot be installed here: {error}")
    monkeypatch.setenv("PYTHONPATH", path_with(JSON))  # of the platform's processes
    made = models.prepare(models.BUNDLED[MODEL], home)
    folder = in_float32(made, tmp_path / MODEL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving(folder, tmp_path / "skyrl", port) as address:
        remote.keep_remote(home, Remote(address, str(folder), str(folder)))
        try:
            with rftkit.connect() as client:
                train(client, rows("train", 4 * STEPS, tokenizer), rows("valid", 8, tokenizer))
        finally:
            rftkit.client.stop_server(home)


def train(client: openai.OpenAI, train_rows: bytes, valid_rows: bytes) -> None:
    files = [
        client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id
        for content in (train_rows, valid_rows)
    ]
    knobs = {"batch_size": 4, "n_epochs": 1, "compute_multiplier": 0.5, "eval_interval": STEPS}
    method: Any = {
        "type": "reinforcement",
        "reinforcement": {"grader": GRADER, "hyperparameters": knobs},
    }
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=files[0],
        validation_file=files[1],
        seed=1,
        method=method,
        metadata={"max_completion_tokens": "18"},
    )
    job = rftkit.jobs.wait(client, job.id)
    events = list(rftkit.jobs.events(client, job.id))
    assert job.status == "succeeded", [event["message"] for event in events][-3:]
    frame = rftkit.jobs.step_frame(events)
    rewards = frame["train_reward_mean"].dropna()
    print(frame[["train_reward_mean", "valid_reward_mean", "step_seconds"]].to_string())
    assert list(rewards.index) == list(range(1, STEPS + 1))
    third = STEPS // 3
    assert rewards[-third:].mean() > rewards[:third].mean()
    answer = client.chat.completions.create(
        model=job.fine_tuned_model,
        messages=[{"role": "user", "content": "Policy: Backups are made daily."}],
        max_tokens=18,
    )
    assert answer.choices[0].message.content
