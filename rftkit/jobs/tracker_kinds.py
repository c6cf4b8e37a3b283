"""The four trackers behind one interface: W&B, trackio, MLflow and TensorBoard.

Each opens the run of a job (always the same run), takes values, tables and files, and closes the
run. Only this module imports their packages, and only when a run is opened. Not here: when
something is sent, and what happens when a tracker is down (`trackers`).
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rftkit import settings

__all__ = ["OPENERS", "Sink", "TrackedJob"]

PROJECT = "rftkit"
"""The project of runs for which none is named."""


@dataclass(frozen=True)
class TrackedJob:
    """What a tracker's run is called and configured with."""

    id: str
    config: dict[str, Any]
    """Model, method, seed and hyperparameters."""


class Sink(Protocol):
    """An open run of a tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the values of a step."""
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Keep a table."""
        ...

    def file(self, path: Path) -> None:
        """Keep a file."""
        ...

    def close(self, status: str) -> None:
        """End the run as its job ended: succeeded, failed, cancelled; paused only leaves it."""
        ...


class Wandb:
    """A run of Weights & Biases, named by the job's id."""

    def __init__(self, job: TrackedJob, options: Mapping[str, Any]) -> None:
        import wandb

        self._wandb, self._job = wandb, job
        self._run = wandb.init(
            project=options.get("project", PROJECT),
            name=options.get("name", job.id),
            entity=options.get("entity"),
            tags=options.get("tags"),
            id=job.id,
            resume="allow",
            config=job.config,
            dir=str(_folder("wandb")),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Sink."""
        self._run.log(dict(values), step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See Sink."""
        data: Any = [list(row) for row in rows]
        self._run.log({name: self._wandb.Table(columns=list(columns), data=data)})

    def file(self, path: Path) -> None:
        """See Sink."""
        artifact = self._wandb.Artifact(f"report-{self._job.id}", type="report")
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def close(self, status: str) -> None:
        """See Sink."""
        self._run.finish(exit_code=int(status == "failed"))


class Trackio:
    """A run of trackio, in its local SQLite file or in a space of the hub."""

    def __init__(self, job: TrackedJob, options: Mapping[str, Any]) -> None:
        import trackio

        self._trackio = trackio
        self._run: Any = trackio.init(
            project=options.get("project", PROJECT),
            name=options.get("name", job.id),
            space_id=options.get("space_id"),
            config=job.config,
            resume="allow",
            embed=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Sink."""
        self._run.log(dict(values), step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See Sink."""
        import pandas as pd

        frame = pd.DataFrame([list(row) for row in rows], columns=list(columns))
        self._run.log({name: self._trackio.Table(dataframe=frame)})

    def file(self, path: Path) -> None:
        """See Sink."""
        self._trackio.save(str(path))

    def close(self, status: str) -> None:
        """See Sink."""
        self._run.finish()


class Mlflow:
    """A run of MLflow, found again by the tag `rftkit.job`."""

    ENDS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}

    def __init__(self, job: TrackedJob, options: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient

        self._client = client = MlflowClient(tracking_uri=options.get("tracking_uri"))
        name = options.get("experiment", PROJECT)
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else client.create_experiment(name)
        found = client.search_runs([experiment], f"tags.`rftkit.job` = '{job.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            client.update_run(self._id, status="RUNNING")
            return
        tags = {"rftkit.job": job.id}
        run = client.create_run(experiment, tags=tags, run_name=options.get("name", job.id))
        self._id = run.info.run_id
        for key, value in job.config.items():
            client.log_param(self._id, key, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Sink."""
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See Sink."""
        data = {column: [row[at] for row in rows] for at, column in enumerate(columns)}
        self._client.log_dict(self._id, data, f"{name}.json")

    def file(self, path: Path) -> None:
        """See Sink."""
        self._client.log_artifact(self._id, str(path))

    def close(self, status: str) -> None:
        """See Sink."""
        if status in self.ENDS:
            self._client.set_terminated(self._id, self.ENDS[status])


class TensorBoard:
    """Event files of TensorBoard, in a folder for the job."""

    def __init__(self, job: TrackedJob, options: Mapping[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        parent = Path(options["folder"]) if "folder" in options else _folder("tensorboard")
        self._folder = parent / options.get("name", job.id)
        # Files are named by the second: one of a quick restart would replace the first.
        suffix = f".{secrets.token_hex(4)}"
        self._writer = SummaryWriter(logdir=str(self._folder), filename_suffix=suffix)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Sink."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See Sink: a text with a table in Markdown."""
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
        self._writer.add_text(name, text)

    def file(self, path: Path) -> None:
        """See Sink: it is put beside the event files."""
        shutil.copy(path, self._folder / path.name)

    def close(self, status: str) -> None:
        """See Sink."""
        self._writer.close()


OPENERS: dict[str, Callable[[TrackedJob, Mapping[str, Any]], Sink]] = {
    "wandb": Wandb, "trackio": Trackio, "mlflow": Mlflow, "tensorboard": TensorBoard,
}  # fmt: skip
"""Kind → what opens a run of it."""


def _folder(name: str) -> Path:
    folder = settings.home() / "trackers" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
