"""Runs saved in the home folder: fetched runs, which never change once finished, and local runs.

Each run is one JSON file under `RFTKIT_HOME/evals`. It holds columns, so that twenty runs are read
in a second, and rows as JSON text, which is parsed on first use. A file is written completely or
not at all, and one that cannot be read counts as absent. Not here: requests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit import settings
from rftkit.evals.items import Record
from rftkit.evals.job_names import unique_labels
from rftkit.evals.samples import SCORE, Run, Samples
from rftkit.jsontext import parse_json
from rftkit.privacy import make_home
from rftkit.wholefile import write_whole

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LOCAL_PREFIX", "find", "kept_runs", "load", "record_of", "samples_of", "save"]

LOCAL_PREFIX = "localrun_"
"""Prefix of the ids of local runs."""
FORMAT = 1
FINAL = frozenset({"completed", "failed", "canceled"})
"""Statuses that do not change any more."""


def path_of(run_id: str, source: str | None) -> Path:
    """The file of a run: a local run by its id, a fetched run by service and id."""
    if run_id.startswith(LOCAL_PREFIX):
        return settings.home() / "evals" / "made" / f"{_safe(run_id)}.json"
    place = hashlib.sha256((source or "").rstrip("/").encode()).hexdigest()[:16]
    return settings.home() / "evals" / "fetched" / place / f"{_safe(run_id)}.json"


def save(record: Record) -> Path:
    """Save a run; returns its file."""
    make_home(settings.home())
    path = path_of(record.run.id, record.run.source)
    text = json.dumps({"format": FORMAT, **asdict(record)}, ensure_ascii=True, allow_nan=False)
    write_whole(path, text)
    return path


def load(run_id: str, source: str | None) -> Record | None:
    """A saved run; None when it is not saved, or its file cannot be read."""
    return _read(path_of(run_id, source))


def find(run_id: str) -> Record | None:
    """A saved run, from whichever service; None when it is not saved."""
    if run_id.startswith(LOCAL_PREFIX):
        return load(run_id, None)
    fetched = sorted((settings.home() / "evals" / "fetched").glob(f"*/{_safe(run_id)}.json"))
    return next((record for path in fetched if (record := _read(path))), None)


def kept_runs() -> Iterator[Record]:
    """Every local run, oldest first; files that cannot be read are skipped."""
    folder = settings.home() / "evals" / "made"
    for path in sorted(folder.glob(f"{LOCAL_PREFIX}*.json"), key=lambda each: each.stat().st_mtime):
        record = _read(path)
        if record:
            yield record


def samples_of(records: Sequence[Record]) -> Samples:
    """Several runs as one; equal labels get a suffix, and equal rows become one row."""
    labels = unique_labels([record.run for record in records])
    runs = tuple(replace(r.run, label=label) for r, label in zip(records, labels, strict=True))
    items: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for record in records:
        for key, number, item in zip(record.keys, record.numbers, record.items, strict=True):
            if key not in items:
                items[key], numbers[key] = item, number + 1  # services and files count from 0
    frame = _by_row(_frame(records, runs), runs, numbers)
    notes = tuple(dict.fromkeys(note for record in records for note in record.notes))
    formats = [each.response_format for each in records if each.response_format]
    return Samples(runs, frame, _Items(items), numbers, notes, formats[0] if formats else None)


def _by_row(frame: pd.DataFrame, runs: Sequence[Run], numbers: Mapping[str, int]) -> pd.DataFrame:
    """Sort each run's samples by row, because services list them in the order they finished."""
    import numpy as np

    places = {run.label: at for at, run in enumerate(runs)}
    run, row = frame["run"].map(places), frame["row"].map(numbers)
    order = np.lexsort((frame["sample"], row, run))
    return frame.iloc[order].reset_index(drop=True)


def _frame(records: Sequence[Record], runs: Sequence[Run]) -> pd.DataFrame:
    """The tidy frame of several runs, each column made at once."""
    import numpy as np
    import pandas as pd

    sizes = [len(record.columns["row"]) for record in records]
    total = sum(sizes)

    def joined(name: str, kind: Any) -> Any:
        parts = [np.asarray(record.columns[name], dtype=kind) for record in records]
        return np.concatenate(parts) if parts else np.empty(0, dtype=kind)

    def text(values: Any) -> Any:
        return pd.Series(values, dtype=object)

    keys = [np.asarray(record.keys, dtype=object) for record in records]
    places = [np.asarray(record.columns["row"], dtype=int) for record in records]
    rows = [key[place] for key, place in zip(keys, places, strict=True)]
    steps = np.repeat([-1 if run.step is None else run.step for run in runs], sizes)
    data: dict[str, Any] = {
        "run": text(np.repeat(np.asarray([run.label for run in runs], dtype=object), sizes)),
        "step": pd.Series(steps, dtype="Int64").where(pd.Series(steps) >= 0),
        "row": text(np.concatenate(rows) if rows else []),
        "sample": joined("sample", int),
        "reward": joined("reward", float),
        "passed": pd.array(list(joined("passed", object)), dtype="boolean"),
        "outcome": text(joined("outcome", object)),
        "truncated": joined("truncated", bool),
        "tokens": joined("tokens", float),
        **{name: text(joined(name, object)) for name in ("answer", "error", "judge")},
    }
    for name in dict.fromkeys(name for record in records for name in record.scores):
        column = np.full(total, np.nan)
        start = 0
        for record, size in zip(records, sizes, strict=True):
            if name in record.scores:
                column[start : start + size] = np.asarray(record.scores[name], dtype=float)
            start += size
        data[SCORE + name] = column
    return pd.DataFrame(data)


def record_of(samples: Samples, label: str) -> Record:
    """One run of a frame in the form that is saved."""
    import numpy as np

    run = samples.run(label)
    frame = samples.frame[samples.frame["run"] == label]
    keys = list(dict.fromkeys(frame["row"]))
    place = {key: at for at, key in enumerate(keys)}

    def numbers(column: Any) -> list[float | None]:
        return [float(v) if np.isfinite(v) else None for v in column.to_numpy(float)]

    def texts(column: Any) -> list[Any]:
        return [None if value is None or value != value else value for value in column]

    passed = zip(frame["passed"], frame["passed"].isna(), strict=True)
    columns: dict[str, list[Any]] = {
        "row": [place[key] for key in frame["row"]],
        "sample": [int(value) for value in frame["sample"]],
        "reward": numbers(frame["reward"]),
        "passed": [None if missing else bool(value) for value, missing in passed],
        "outcome": [str(value) for value in frame["outcome"]],
        "truncated": [bool(value) for value in frame["truncated"]],
        "tokens": numbers(frame["tokens"]),
        "answer": [str(value) for value in frame["answer"]],
        "error": texts(frame["error"]),
        "judge": texts(frame["judge"]),
    }
    return Record(
        run=run,
        columns=columns,
        scores={name: numbers(frame[SCORE + name]) for name in samples.graders},
        keys=keys,
        numbers=[int(samples.numbers.get(key, at)) - 1 for at, key in enumerate(keys, 1)],
        items=[json.dumps(samples.items.get(key) or {}, ensure_ascii=False) for key in keys],
        notes=list(samples.notes),
        response_format=dict(samples.response_format) if samples.response_format else None,
    )


class _Items(Mapping[str, Mapping[str, Any]]):
    """Rows by key, parsed on first use."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self._parsed: dict[str, Mapping[str, Any]] = {}

    def __getitem__(self, key: str) -> Mapping[str, Any]:
        if key not in self._parsed:
            self._parsed[key] = parse_json(self._texts[key])
        return self._parsed[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


def _read(path: Path) -> Record | None:
    try:
        kept = parse_json(path.read_bytes())
        if kept.pop("format") != FORMAT:
            return None
        return Record(**{**kept, "run": Run(**kept["run"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _safe(run_id: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in run_id)
