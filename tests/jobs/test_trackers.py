"""Trackers: what they are sent, under which names, and that one that is down holds nothing up."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rftkit.errors import InputError
from rftkit.integrations import TYPES, check_integrations, integration
from rftkit.jobs import trackers
from rftkit.jobs.jobs import Update
from rftkit.jobs.tracker_kinds import OPENERS, TrackedJob
from rftkit.jobs.trackers import Sender, Tracked, values_of

DATA = {
    "step": 1,
    "scores": {
        "train_reward_mean": 0.25,
        "valid_reward_mean": 0.5,
        "graders": [{"name": "compliant", "type": "string_check", "valid_reward_mean": 0.75}],
    },
    "learning": {"kl": 0.1, "loss": None},
    "timing": {"step": {"sampling": 2.0}},
}


class Wire(SimpleNamespace):
    """A job as the client has it."""

    def to_dict(self, **_: Any) -> dict[str, Any]:
        return {"id": self.id, "model": "m", "seed": 1, "method": {"type": "dpo", "dpo": {}}}


def update(status: str = "running", *steps: int) -> Any:
    events = [
        {"id": f"e{step}", "type": "metrics", "data": {**DATA, "step": step}} for step in steps
    ]
    return Update(Wire(id="ftjob-1", status=status, eval_id=None), events)  # type: ignore[arg-type]


class Fake:
    """A tracker that remembers, or fails as long as it is told to."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.is_down = False
        self.opened = 0

    def open(self, job: TrackedJob, options: Mapping[str, Any]) -> Fake:
        self.opened += 1
        if self.is_down:
            raise OSError("no route")
        return self

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.calls.append((step, dict(values)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.calls.append((name, [list(row) for row in rows]))

    def file(self, path: Path) -> None:
        self.calls.append(path)

    def close(self, status: str) -> None:
        self.calls.append(status)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    found = Fake()
    monkeypatch.setitem(OPENERS, "wandb", found.open)
    monkeypatch.setattr(trackers, "FIRST_PAUSE", 0.01)
    return found


def tracked(said: list[str], **options: Any) -> Tracked:
    entry = {"type": "wandb", "wandb": {}}
    return Tracked(None, [entry], said.append, **options)  # type: ignore[arg-type]


def test_values_have_the_names_of_the_field() -> None:
    assert values_of(DATA) == {
        "train/reward/mean": 0.25,
        "valid/reward/mean": 0.5,
        "valid/reward/compliant": 0.75,
        "train/kl": 0.1,
        "time/sampling_seconds": 2.0,
    }
    assert values_of({"step": 1, "train_loss": 2.0, "full_valid_loss": 3.0}) == {
        "train/loss": 2.0,
        "full_valid/loss": 3.0,
    }


def test_a_job_is_sent_step_by_step_and_ends_with_its_report(fake: Fake, tmp_path: Path) -> None:
    said: list[str] = []
    each = tracked(said, report=lambda job_id, folder: tmp_path / f"{job_id}.html")
    each(update("running", 0, 1))
    each(update("succeeded", 2))
    each.close()
    assert [call[0] for call in fake.calls[:3]] == [0, 1, 2]
    assert fake.calls[3:] == [tmp_path / "ftjob-1.html", "succeeded"]
    assert not said


def test_a_follower_that_is_started_again_continues_the_run(fake: Fake) -> None:
    each = tracked([])
    each(update("running", 0, 1))
    each.close()
    again = tracked([])
    again(update("succeeded", 0, 1, 2))
    again.close()
    assert [call[0] for call in fake.calls if isinstance(call, tuple)] == [0, 1, 2]


def test_a_tracker_that_is_down_is_reported_once_and_tried_again(fake: Fake) -> None:
    said: list[str] = []
    fake.is_down = True
    each = tracked(said)
    each(update("running", 0))
    while fake.opened < 3:
        time.sleep(0.01)
    fake.is_down = False
    each(update("succeeded", 1))
    each.close()
    assert said == ["wandb does not take what it is sent: no route. It is tried again"]
    assert [call[0] for call in fake.calls if isinstance(call, tuple)] == [0, 1]


def test_a_tracker_that_hangs_holds_nobody_up() -> None:
    """Putting never waits, the oldest is dropped, and the end waits only for its time."""
    stuck, said = threading.Event(), list[str]()

    def hang() -> Any:
        stuck.wait(60)
        raise OSError("late")

    sender = Sender("wandb", hang, said.append)
    for _ in range(trackers.QUEUE + 5):
        sender.put(lambda sink: None)
    assert len(sender._actions) == trackers.QUEUE
    assert sender.close(0.1) == trackers.QUEUE + 5
    assert said == [f"wandb: {trackers.QUEUE + 5} updates were not sent"]
    stuck.set()


def test_what_an_integration_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    hosted = {"type": "wandb", "wandb": {"project": "p", "tags": ["a"], "name": None}}
    assert check_integrations([hosted]) == [
        {"type": "wandb", "wandb": {"project": "p", "tags": ["a"]}}
    ]
    assert integration("mlflow", {"tracking_uri": "sqlite:///x"})["type"] == "mlflow"
    with pytest.raises(InputError, match="has no 'tracking_uri'"):  # not by a request
        check_integrations([{"type": "mlflow", "mlflow": {"tracking_uri": "http://elsewhere"}}])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install tensorboardX"):
        check_integrations([{"type": "tensorboard"}])


# ── the real packages, offline ───────────────────────────────────────────────────────────────


def sent(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    """A job that is followed twice, with a table and a file, in the tracker itself."""
    pytest.importorskip(TYPES[kind].module, reason=f"pip install {TYPES[kind].module}")
    job = TrackedJob("ftjob-1", {"model": "m", "seed": 1})
    report = tmp_path / "report.html"
    report.write_text("<p>report</p>")
    first = OPENERS[kind](job, options)
    first.log(0, {"train/reward/mean": 0.25})
    first.log(1, {"train/reward/mean": 0.5})
    first.close("paused")
    again = OPENERS[kind](job, options)
    again.log(2, {"train/reward/mean": 0.75})
    again.table("valid/answers", ["row", "answer"], [[0, "a|b"], [1, "c"]])
    again.file(report)
    again.close("succeeded")


def test_mlflow_keeps_one_run_in_a_file_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    sent("mlflow", {"tracking_uri": uri, "experiment": "e"}, tmp_path)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    known = client.get_experiment_by_name("e")
    assert known is not None
    [run] = client.search_runs([known.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["model"] == "m"
    history = client.get_metric_history(run.info.run_id, "train/reward/mean")
    assert [(each.step, each.value) for each in history] == [(0, 0.25), (1, 0.5), (2, 0.75)]
    assert {each.path for each in client.list_artifacts(run.info.run_id)} == {
        "report.html",
        "valid",
    }


def test_tensorboard_reads_the_event_files(tmp_path: Path) -> None:
    sent("tensorboard", {"folder": str(tmp_path / "tb")}, tmp_path)
    folder = tmp_path / "tb" / "ftjob-1"
    found = b"".join(path.read_bytes() for path in sorted(folder.glob("events.*")))
    assert found.count(b"train/reward/mean") == 3
    assert b"valid/answers" in found
    assert (folder / "report.html").is_file()


def test_trackio_keeps_one_run_in_its_local_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    sent("trackio", {"project": "p"}, tmp_path)
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("p", "ftjob-1")
    values = [each["train/reward/mean"] for each in logs if "train/reward/mean" in each]
    assert values == [0.25, 0.5, 0.75]


def test_wandb_writes_a_run_of_the_jobs_name_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("RFTKIT_HOME", str(tmp_path / "rk"))
    sent("wandb", {"project": "p", "tags": ["a"]}, tmp_path)
    runs = sorted((tmp_path / "rk" / "trackers" / "wandb" / "wandb").glob("offline-run-*-ftjob-1"))
    assert runs
