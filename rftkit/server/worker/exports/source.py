"""What is exported: a fine-tuned model or a base model of a home, and the job that made it.

Not here: writing it (`folders`, `gguf_file`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rftkit.errors import NotFoundError, RftkitError
from rftkit.server.engine import models
from rftkit.server.engine.tinker.remote import kind_of_folder
from rftkit.server.engine.values import is_whole
from rftkit.server.store.records import Job, Model
from rftkit.server.store.store import Store
from rftkit.server.training.journal import damage

__all__ = ["Source", "find_source"]


@dataclass(frozen=True)
class Source:
    """A model of a home."""

    store: Store
    home: Path
    name: str
    base: models.BaseModel
    base_folder: Path
    model: Model | None
    """The fine-tuned model; None for the base model itself."""

    @property
    def saved(self) -> Path | None:
        """The folder with its adapters or whole weights; None: the base model itself."""
        return None if self.model is None else Path(self.model.folder)

    @property
    def has_adapter(self) -> bool:
        """Whether it is adapters on a base model."""
        return self.saved is not None and not is_whole(self.saved)

    @property
    def thinking(self) -> str | None:
        """The tag that opens its reasoning, if it was trained with one."""
        return self.model.thinking if self.model else None

    @cached_property
    def job(self) -> Job | None:
        """The job that trained it; None for a base model, and for a job that is gone."""
        if self.model is None or self.model.job_id is None:
            return None
        try:
            return self.store.job(self.model.job_id)
        except NotFoundError:
            return None

    @cached_property
    def plan(self) -> dict[str, Any]:
        """The settings of its job; empty without one."""
        path = self.home / "jobs" / self.job.id / "plan.json" if self.job else None
        try:
            return json.loads(path.read_bytes()) if path and path.is_file() else {}
        except ValueError:
            return {}

    @property
    def hub_name(self) -> str | None:
        """The name of the base model on the Hugging Face hub; None if it is only a folder here."""
        name = self.base.name
        is_cached = f"models--{name.replace('/', '--')}" in self.base_folder.parts
        return name if name.count("/") == 1 and is_cached else None


def find_source(store: Store, home: Path, name: str) -> Source:
    """The model `name`, its files undamaged and its base ready to load.

    Raises:
        NotFoundError: there is no such model.
        RftkitError: its files are damaged, or are not here.
    """
    model = store.model(name)
    base = models.find_base(model.base if model else name, home)
    source = Source(store, home, name, base, models.prepare(base, home), model)
    if source.saved is not None:
        if wrong := damage(source.saved):
            raise RftkitError(f"the weights of {name} are damaged: {wrong}")
        if kind_of_folder(source.saved) == "tinker":
            raise RftkitError(
                f"the weights of {name} are on a Tinker server that gave no archive of them; only "
                "the server can hand them out"
            )
    return source
