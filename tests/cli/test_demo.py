"""The demo: its story with the training played by the test, and in full on the tiny model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Served

from rftkit import client, jobs, reports
from rftkit.cli import demo
from rftkit.errors import InputError, JobFailedError
from rftkit.server.inference.worker_process import ChatError

TUNED = "ft:rftkit-tiny:local:tiny-copy:x"


@pytest.fixture
def told(served: Served, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the demo said; its platform is the one in memory, its report an empty file."""

    def report(notebook: str, out: Path, **parameters: Any) -> Path:
        assert notebook == "report_job"
        assert Path(parameters["answers"]).is_file()
        out.write_text("<html>")
        return out

    monkeypatch.setattr(reports, "run", report)
    monkeypatch.setattr(demo, "connect", lambda: served.client)
    served.link.say = say
    return []


def say(request: dict[str, Any]) -> Any:
    """The tuned model copies; the base says aaa, and breaks when a letter is h."""
    word = request["messages"][-1]["content"].removeprefix("copy: ")
    if request["model"] == TUNED:
        return word
    return ChatError("no h here", status=400) if "h" in word else "aaa"


def play(served: Served, ending: Callable[[str], object]) -> threading.Thread:
    """Train the next job: a baseline, a step, a checkpoint; then `ending`."""
    store = served.platform.store

    def train() -> None:
        while not (waiting := store.unfinished_jobs()):
            time.sleep(0.01)
        job = waiting[0].id
        store.update_job(job, status="running")
        for step, reward in ((0, 0.1), (1, 0.9)):
            seconds = {"sampling": 1.0, "training": 0.5, "eval": 0.25, "full_iteration": 2.0}
            data = {
                "step": step,
                "total_steps": 1,
                "scores": {"valid_reward_mean": reward},
                "timing": {"step": seconds},
            }
            store.add_event(job, f"Step {step}/1", type="metrics", data=data)
        store.add_model(TUNED, "rftkit-tiny", job, "")
        store.add_checkpoint(job, 1, TUNED, {"full_valid_mean_reward": 0.9}, "")
        ending(job)

    thread = threading.Thread(target=train)
    thread.start()
    return thread


def test_the_whole_story(served: Served, told: list[str], tmp_path: Path) -> None:
    store = served.platform.store
    thread = play(
        served, lambda job: store.update_job(job, status="succeeded", fine_tuned_model=TUNED)
    )
    result = demo.run("tiny_copy", seed=4, out=tmp_path / "out", on_progress=told.append)
    thread.join()

    assert result["seed"] == 4
    assert result["models"] == {"base": "rftkit-tiny", "final": TUNED}
    assert result["validation"] == {0: 0.1, 1: 0.9}
    assert result["test"]["final"]["exact"] == 1.0
    assert result["test"]["base"]["exact"] < 0.1
    assert result["test"]["constant"]["reward"] < 0.45
    assert result["seconds"]["sampling"] == 2.0
    assert Path(result["report"]).read_text() == "<html>"
    json.dumps(result)
    answers = json.loads(Path(result["answers"]).read_text())
    assert list(answers["rows"][0]["answers"]) == ["base", "final"]
    assert answers["constant"]["reward"] == result["test"]["constant"]["reward"]

    text = "\n".join(told)
    for heading in range(1, 7):
        assert f"{heading}. " in text
    assert "reference answers graded: each earns 1.000" in text
    assert "best constant answer" in text
    assert re.search(r"base model: \d+ requests failed, the first: .*no h here", text)
    assert result["test"]["base"]["failed"] > 0
    assert "where the time went" in text


def test_interrupted_it_says_how_to_come_back(
    served: Served, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo.run("tiny_copy", out=tmp_path, on_progress=told.append)
    [job] = served.client.fine_tuning.jobs.list().data
    assert job.status not in ("failed", "cancelled")
    assert f"rftkit job watch {job.id}" in told[-1]
    assert f"rftkit report report_job -p job_id {job.id}" in told[-1]


@pytest.mark.parametrize("status", ["failed", "cancelled", "paused"])
def test_a_job_without_a_model_ends_it(
    served: Served, told: list[str], tmp_path: Path, status: str
) -> None:
    thread = play(served, lambda job: served.platform.store.update_job(job, status=status))
    with pytest.raises(JobFailedError, match=status):
        demo.run("tiny_copy", out=tmp_path / "out", on_progress=told.append)
    thread.join()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_first(served: Served, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/out: .* choose another folder with --out"):
        demo.run("tiny_copy", out=tmp_path / "file" / "out")
    assert served.client.fine_tuning.jobs.list().data == []


def test_for_real_on_the_tiny_model(home: Path, tmp_path: Path) -> None:
    """What a stranger types: a platform starts, a model learns, one HTML file is there."""
    program = [sys.executable, "-c", "from rftkit.cli.app import main; main()"]
    command = [*program, "demo", "--fast", "--json", "--out", str(tmp_path / "out")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    finally:
        client.stop_server(home)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rewards = list(result["validation"].values())
    assert rewards[-1] > rewards[0] + 0.1
    assert result["test"]["final"]["reward"] > result["test"]["base"]["reward"]
    assert result["test"]["final"]["failed"] == 0
    assert "</html>" in Path(result["report"]).read_text()
    print(result["seconds"])
