"""When the models of a saved account are shut down, one row for each model, the earliest first.

Dates are from the service's list of models, as it was when the account was saved. The list names
base models and final models; a checkpoint, or a model that was deleted, may be missing from it, and
the row then says so. A model without a date of its own may still be shut down with its base model,
whose date is in the same row. Not here: the dates of the service's other parts (`overview`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.importer.dump import Dump, saved_dump
from rftkit.importer.overview import day_of
from rftkit.importer.pages import items_of
from rftkit.jsontext import parse_json

__all__ = ["ModelEnd", "listed_models", "model_ends"]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelEnd:
    """A model of the account and when it goes off."""

    shutdown_date: str | None
    """`2027-03-01`; None if the service has announced none, or does not list the model."""
    model: str
    kind: str
    """`final model`, `checkpoint of step 5`, `base model`, or `fine-tuned model` without its job
    in the dump."""
    job_id: str | None
    base_model: str | None
    base_shutdown_date: str | None
    is_listed: bool
    """Whether the service's list of models names it."""

    @property
    def first_date(self) -> str:
        """The earlier of its own date and its base model's, to sort by; no date comes last."""
        dates = [each for each in (self.shutdown_date, self.base_shutdown_date) if each]
        return min(dates, default="9999-12-31")


def model_ends(folder: str | Path) -> list[ModelEnd]:
    """One row for each model of the account, and for each base model that its jobs started from.

    Raises:
        InputError: there is no dump.
    """
    dump = saved_dump(folder)
    listed = {str(each.get("id")): each for each in listed_models(dump)}
    named = list(_of_jobs(dump))
    bases = dict.fromkeys(base for _, _, _, base in named if base and not base.startswith("ft:"))
    known = {name for name, *_ in named} | bases.keys()
    named += [
        (name, "fine-tuned model", None, name.split(":")[1] or None)
        for name in listed
        if name.startswith("ft:") and name not in known
    ]
    named += [(name, "base model", None, None) for name in bases]
    found = [_end(listed, *each) for each in dict.fromkeys(named)]
    return sorted(found, key=lambda each: (each.first_date, each.model))


def listed_models(dump: Dump) -> list[Json]:
    """The account's list of models, as saved; `--verify` names pages that are damaged."""
    return [
        model
        for path in dump.pages("lists/models")
        for page in _objects(dump, path)
        for model in items_of(page)
    ]


def _of_jobs(dump: Dump) -> Iterator[tuple[str, str, str | None, str | None]]:
    """Name, kind, job and base of every model that a job made."""
    for key in sorted(dump.ledger.objects):
        if not key.startswith("jobs/"):
            continue
        for job in _objects(dump, f"{key}/job.json"):
            made_by = _text(job.get("id")), _text(job.get("model"))
            final = _text(job.get("fine_tuned_model"))
            if final:
                yield final, "final model", *made_by
            for each in _objects(dump, f"{key}/checkpoints.jsonl"):
                name = _text(each.get("fine_tuned_model_checkpoint"))
                if name and name != final:
                    yield name, f"checkpoint of step {each.get('step_number')}", *made_by


def _objects(dump: Dump, path: str) -> list[Json]:
    """The JSON objects of a saved file, one in all or one a line; none if it was damaged."""
    if dump.wrong(path) is not None:
        return []
    content = dump.read(path)
    texts = content.splitlines() if path.endswith(".jsonl") else [content]
    found = [parse_json(text) for text in texts if text.strip()]
    return [each for each in found if isinstance(each, dict)]


def _end(
    listed: dict[str, Json], name: str, kind: str, job_id: str | None, base: str | None
) -> ModelEnd:
    def day(model: str | None) -> str | None:
        return day_of(listed.get(model or "", {}).get("shutdown_date"))

    return ModelEnd(day(name), name, kind, job_id, base, day(base), name in listed)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
