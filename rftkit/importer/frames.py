"""A dump as pandas frames: `open_dump(DIR).metrics(job_id)` and its neighbours.

Frames are made from the raw JSON, so fields that no SDK knows are there too (`job`, `events` and
the others that return dicts hold everything). Quirks of the live services end here: both
spellings of rewards, `-<uuid>` behind result names, `error: {}`, base64 result files, missing
hyperparameters. Empty cells mean "not reported", never zero. Not here: writing, networks.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.errors import InputError, NotFoundError
from rftkit.hyperparameters import HYPERPARAMETERS
from rftkit.importer.dump import safe_name, saved_dump
from rftkit.jsontext import parse_json
from rftkit.outputitems import answer_text, error_text, grader_name

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OpenDump", "csv_text", "open_dump"]

_REWARDS = {
    "train_reward_mean": ("train_reward_mean", "train_mean_reward"),
    "valid_reward_mean": ("valid_reward_mean", "full_valid_mean_reward"),
}


def open_dump(folder: str | Path) -> OpenDump:
    """Open a dump to read it.

    Raises:
        InputError: there is no dump.
    """
    return OpenDump(folder)


class OpenDump:
    """The contents of a dump. `read_*` methods return plain JSON, the others frames."""

    def __init__(self, folder: str | Path) -> None:
        """`folder` is what `rftkit import --dump` wrote."""
        self._dump = saved_dump(folder)

    def jobs(self) -> pd.DataFrame:
        """One row per job, oldest first: what it was, how it ended, its hyperparameters."""
        rows = [_job_row(self._read(f"{key}/job.json")) for key in self._keys("jobs")]
        return _frame(rows, times=("created_at", "finished_at")).sort_values(
            "created_at", ignore_index=True
        )

    def events(self, job_id: str) -> pd.DataFrame:
        """One row per event, oldest first: `id`, `created_at`, `level`, `type`, `message`,
        `step` and the whole `data`.
        """  # fmt: skip
        rows = [
            {**_pick(event, "id", "created_at", "level", "type", "message"),
             "step": (event.get("data") or {}).get("step"), "data": event.get("data")}
            for event in self.read_events(job_id)
        ]  # fmt: skip
        return _frame(rows, "id created_at level type message step data", times=("created_at",))

    def metrics(self, job_id: str) -> pd.DataFrame:
        """One row per step, from the metric events or, where there are none, the result file.

        Columns as in `rftkit.jobs.metrics.COLUMNS`.
        """
        from rftkit.jobs.metrics import events_from_csv, step_frame

        events = [
            e for e in self.read_events(job_id) if (e.get("data") or {}).get("step") is not None
        ]
        return step_frame(events or events_from_csv(self.read_result_file(job_id) or "step\n"))

    def checkpoints(self, job_id: str) -> pd.DataFrame:
        """One row per checkpoint, by step; its other metrics are columns of their own."""
        rows = []
        for each in self._lines(self._key("jobs", job_id), "checkpoints"):
            metrics = dict(each.get("metrics") or {})
            rewards = {name: _pop_first(metrics, spelled) for name, spelled in _REWARDS.items()}
            names = ("id", "created_at", "fine_tuning_job_id")
            step = {
                "step": each.get("step_number"),
                "model": each.get("fine_tuned_model_checkpoint"),
            }
            metrics.pop("step", None)
            rows.append({**step, **rewards, **metrics, **_pick(each, *names)})
        columns = "step model train_reward_mean valid_reward_mean"
        return _frame(rows, columns, times=("created_at",)).sort_values("step", ignore_index=True)

    def result_file(self, job_id: str) -> pd.DataFrame:
        """The job's result file, decoded if it came as base64.

        Raises:
            NotFoundError: it is not in the dump.
            InputError: it is no table.
        """
        import pandas as pd

        text = self.read_result_file(job_id)
        if text is None:
            raise NotFoundError(f"the dump holds no result file of {job_id}")
        try:
            return pd.read_csv(io.StringIO(text))
        except ValueError as error:  # pandas raises subclasses of it
            raise InputError(f"the result file of {job_id} cannot be read: {error}") from None

    def models(self) -> pd.DataFrame:
        """One row per model, the earliest shutdown first: its date, its job, its base's date."""
        from rftkit.importer.shutdowns import ModelEnd, model_ends

        rows = [asdict(each) for each in model_ends(self._dump.folder)]
        return _frame(rows, " ".join(ModelEnd.__dataclass_fields__))

    def evals(self) -> pd.DataFrame:
        """One row per eval: `id`, `name`, `created_at` and its graders' names."""
        rows = []
        for key in self._keys("evals"):
            each = self._read(f"{key}/eval.json")
            names = [grader_name(c.get("name")) for c in each.get("testing_criteria") or []]
            rows.append({**_pick(each, "id", "name", "created_at"), "graders": names})
        return _frame(rows, "id name created_at graders", times=("created_at",))

    def runs(self, eval_id: str) -> pd.DataFrame:
        """One row per run: status, model, counts."""
        rows = []
        for key in self._keys(f"{self._key('evals', eval_id)}/runs"):
            run = self._read(f"{key}/run.json")
            counts = run.get("result_counts") or {}
            names = ("id", "eval_id", "name", "status", "model", "created_at")
            totals = _pick(counts, "total", "passed", "failed", "errored")
            rows.append({**_pick(run, *names), **totals, "error": error_text(run.get("error"))})
        columns = "id eval_id name status model created_at total passed failed errored error"
        return _frame(rows, columns, times=("created_at",))

    def output_items(self, run_id: str) -> pd.DataFrame:
        """One row per output item and result, by the row of the dataset.

        An item without results is one row without score.

        `item` is the dataset row, `output_text` the model's last text, `grader` the name
        of the criterion without its id.
        """
        rows = [row for item in self.read_output_items(run_id) for row in _item_rows(item)]
        columns = (
            "id datasource_item_id status grader score passed output_text finish_reason model "
            "completion_tokens error item"
        )
        found = _frame(rows, columns)
        return found.sort_values("datasource_item_id", kind="stable", ignore_index=True)

    def graders(self) -> pd.DataFrame:
        """One row per distinct grader spec: `name`, `type`, `spec`, `used_by`."""
        rows = []
        for key in self._keys("graders"):
            spec = self._read(f"{key}/grader.json")
            uses = [f"{use['object']}:{use['path']}" for use in self._read(f"{key}/used_by.json")]
            rows.append({**_pick(spec, "name", "type"), "spec": spec, "used_by": uses})
        return _frame(rows, "name type spec used_by")

    def read_job(self, job_id: str) -> dict[str, Any]:
        """The job as the service gave it."""
        job: dict[str, Any] = self._read(f"{self._key('jobs', job_id)}/job.json")
        return job

    def read_events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """Every event, oldest first."""
        return self._lines(self._key("jobs", job_id), "events")

    def read_output_items(self, run_id: str) -> Iterator[dict[str, Any]]:
        """Every output item of a run, in the order of the service."""
        ending = f"/runs/{safe_name(run_id)}"
        keys = [key for key in self._dump.ledger.objects if key.endswith(ending)]
        if not keys:
            raise NotFoundError(f"the dump holds no run {run_id}")
        return self._lines(keys[0], "output_items")

    def read_file(self, file_id: str) -> bytes:
        """The content of a file, byte for byte.

        Raises:
            NotFoundError: the dump does not hold it.
        """
        folder = f"files/{safe_name(file_id)}/content"
        for name in self._dump.ledger.files:
            if name == folder or name.startswith(f"{folder}."):
                return self._dump.read(name.removesuffix(".gz"))
        raise NotFoundError(f"the dump does not hold the content of {file_id}")

    def read_result_file(self, job_id: str) -> str | None:
        """The CSV of step metrics, decoded if it came as base64; None if there is none."""
        for file_id in self.read_job(job_id).get("result_files") or []:
            try:
                return csv_text(self.read_file(file_id))
            except NotFoundError:
                continue
        return None

    def _keys(self, place: str) -> list[str]:
        depth = place.count("/") + 1
        keys = self._dump.ledger.objects
        return sorted(k for k in keys if k.startswith(f"{place}/") and k.count("/") == depth)

    def _key(self, kind: str, identifier: str) -> str:
        key = f"{kind}/{safe_name(identifier)}"
        if key not in self._dump.ledger.objects:
            raise NotFoundError(f"the dump holds no {kind.removesuffix('s')} {identifier}")
        return key

    def _read(self, path: str) -> Any:
        return parse_json(self._dump.read(path))

    def _lines(self, key: str, kind: str) -> Iterator[dict[str, Any]]:
        if self._dump.find(f"{key}/{kind}.jsonl") is None:
            return
        with self._dump.open(f"{key}/{kind}.jsonl") as file:
            for line in file:
                yield parse_json(line)


def _job_row(job: dict[str, Any]) -> dict[str, Any]:
    method = job.get("method") or {}
    kind = method.get("type") or "supervised"
    said = (method.get(kind) or {}).get("hyperparameters") or job.get("hyperparameters") or {}
    names = ("id", "status", "model", "fine_tuned_model", "created_at", "finished_at")
    more = ("trained_tokens", "training_file", "validation_file", "result_files", "eval_id", "seed")
    return {
        **_pick(job, *names),
        "method": kind,
        **_pick(job, *more),
        "suffix": job.get("user_provided_suffix"),
        "error": error_text(job.get("error")),
        **_pick(said, *HYPERPARAMETERS),
    }


def _item_rows(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    sample = item.get("sample") or {}
    shared = {
        **_pick(item, "id", "datasource_item_id", "status"),
        "output_text": answer_text(sample.get("output")),
        **_pick(sample, "finish_reason", "model"),
        "completion_tokens": (sample.get("usage") or {}).get("completion_tokens"),
        "error": error_text(sample.get("error")),
        "item": item.get("datasource_item"),
    }
    for result in item.get("results") or [{}]:
        grader = grader_name(result.get("name"))
        yield {**shared, "grader": grader, **_pick(result, "score", "passed")}


def csv_text(content: bytes) -> str:
    """The text of a result file, decoded if it came as base64."""
    if not set(b",\t") & set(content):  # neither is in base64's alphabet, and tables have one
        with contextlib.suppress(binascii.Error):
            content = base64.b64decode(b"".join(content.split()), validate=True)
    return content.decode("utf-8-sig", "replace")


def _pop_first(metrics: dict[str, Any], names: tuple[str, ...]) -> Any:
    found = [value for name in names if (value := metrics.pop(name, None)) is not None]
    return found[0] if found else None


def _pick(wire: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: wire.get(name) for name in names}


def _frame(
    rows: list[dict[str, Any]], columns: str = "", *, times: tuple[str, ...] = ()
) -> pd.DataFrame:
    """A frame that has `columns` first and even when there are no rows; `times` as UTC moments."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    frame = frame.reindex(columns=list(dict.fromkeys([*columns.split(), *frame.columns, *times])))
    for name in times:
        frame[name] = pd.to_datetime(frame[name], unit="s", utc=True)
    return frame
