"""From a reinforcement job's rollouts to preference rows, to a dpo job, and back to other rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from typer.testing import CliRunner, Result

from rftkit import client, datasets, jobs
from rftkit.cli import app as cli
from rftkit.errors import InputError

Item = dict[str, Any]

LENGTH = """
def grade(sample, item):
    text = sample["output_text"]
    if text.count("a") == 1:
        raise ValueError("no grade for this one")
    return min(1.0, len(set(text)) / 4)
"""
"""Fails for some answers, and gives many the same reward."""


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, platform: openai.OpenAI) -> Callable[..., Result]:
    """Type a command in this process; `connect()` gives the platform of the session."""
    monkeypatch.setattr(client, "connect", lambda *_: platform)
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


def rows_in(path: Path) -> list[Item]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def expected_pairs(groups: list[Item]) -> tuple[list[Item], int, int]:
    """The rows that the groups should give; how many are flat, and how many have too few grades."""
    rows, flat, few = [], 0, 0
    for group in groups:
        known = [
            (each["grade"]["reward"], each["text"])
            for each in group["rollouts"]
            if each["grade"]["reward"] is not None and each["stop_reason"] != "length"
        ]
        rewards = [reward for reward, _ in known]
        if len(known) < 2:
            few += 1
        elif max(rewards) == min(rewards):
            flat += 1
        else:
            best = next(text for reward, text in known if reward == max(rewards))
            worst = next(text for reward, text in known if reward == min(rewards))
            rows.append(
                {
                    "input": {"messages": group["item"]["messages"]},
                    "preferred_output": [{"role": "assistant", "content": best}],
                    "non_preferred_output": [{"role": "assistant", "content": worst}],
                }
            )
    return rows, flat, few


def test_the_best_and_the_worst_rollouts_of_a_job_teach_a_dpo_job(
    platform: openai.OpenAI, typed: Callable[..., Result], tmp_path: Path
) -> None:
    given = datasets.bundled("tiny_copy").train.read_text().splitlines(keepends=True)[:32]
    train = tmp_path / "train.jsonl"
    train.write_text("".join(given))
    file_id = datasets.upload(platform, train).id
    job = jobs.create(
        platform,
        model="rftkit-tiny",
        training_file=file_id,
        validation_file=file_id,
        grader={"type": "python", "name": "letters", "source": LENGTH},
        hyperparameters={"batch_size": 16, "n_epochs": 1, "compute_multiplier": 0.5},
        metadata={"max_completion_tokens": "8", "error_budget": "1", "guidance": "none"},
        seed=1,
    )
    job = jobs.wait(platform, job.id, poll_seconds=0.1)
    assert job.status == "succeeded", job.error
    groups = list(jobs.all_rollouts(platform, job.id))
    outcomes = {each["grade"]["outcome"] for group in groups for each in group["rollouts"]}
    rows, flat, few = expected_pairs(groups)
    assert "failed" in outcomes
    assert len(rows) >= 10

    pairs = tmp_path / "pairs.jsonl"
    done = typed("dataset", "convert", job.id, pairs, "--to", "preference", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert rows_in(pairs) == rows
    assert (found["num_rows"], found["num_flat"], found["num_few"]) == (len(rows), flat, few)
    assert found["num_groups"] == len(groups) == 32

    taught = jobs.create(
        platform,
        model="rftkit-tiny",
        method="dpo",
        training_file=datasets.upload(platform, pairs).id,
        hyperparameters={"batch_size": 8, "n_epochs": 1},
        seed=1,
    )
    taught = jobs.wait(platform, taught.id, poll_seconds=0.1)
    assert taught.status == "succeeded", taught.error
    again = typed("dataset", "convert", taught.id, tmp_path / "x.jsonl", "--to", "preference")
    assert isinstance(again.exception, InputError)
    assert "only reinforcement jobs" in str(again.exception)
    assert not (tmp_path / "x.jsonl").exists()

    for form in ("rft", "supervised"):
        target = tmp_path / f"{form}.jsonl"
        done = typed("dataset", "convert", pairs, target, "--to", form)
        assert done.exit_code == 0, done.output
        for back, row in zip(rows_in(target), rows, strict=True):
            prompt, [answer] = row["input"]["messages"], row["preferred_output"]
            if form == "rft":
                assert back == {"messages": prompt, "reference_answer": answer["content"]}
            else:
                assert back == {"messages": [*prompt, answer]}
