"""The base models in memory: each is loaded on first use, and serves jobs and chats.

Loading may hang, so it is announced with a time limit (`Watch`). Not here: what the models are
asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from rftkit import settings
from rftkit.errors import MissingExtraError
from rftkit.server.engine import models
from rftkit.server.engine.base import ServingEngine
from rftkit.server.engine.tinker import remote
from rftkit.server.store.records import Model

__all__ = ["Engines", "Watch", "kind_of_model"]

LOAD_SECONDS = 180.0
"""How long loading a small model may take, even on a busy machine."""
LOAD_BYTES_PER_SECOND = 20e6
"""Speed of the slowest disk that loading waits for."""

Watch = Callable[[str, float, str | None], contextlib.AbstractContextManager[None]]
"""(what, seconds, job): wraps work that may hang; after the time limit the process is replaced."""


def _unwatched(
    what: str, seconds: float, job: str | None
) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


class Engines:
    """The base models in memory; each is loaded on first use."""

    def __init__(self, home: Path, watch: Watch = _unwatched) -> None:
        self._home = home
        self.watch = watch
        self._loaded: dict[tuple[str, str], ServingEngine] = {}

    def get(
        self,
        base: str,
        on_progress: Callable[[str], None] = lambda _: None,
        kind: str | None = None,
        job: str | None = None,
    ) -> ServingEngine:
        """Return the engine of a base model.

        Args:
            base: name of the model.
            on_progress: gets a message before a slow part, such as a conversion.
            kind: "torch" for this machine, "tinker" for the operator's server; None for the
                operator's choice.
            job: id of the job that needs it.

        Raises:
            NotFoundError: when there is no such model.
            MissingExtraError: when the packages that run it are not installed.
            EngineLostError: when the server does not answer.
        """
        key = (base, remote.kind_of(base, self._home, kind))
        if key not in self._loaded:
            make = self._make_tinker if key[1] == "tinker" else self._make_torch
            self._loaded[key] = make(base, on_progress, job)
        return self._loaded[key]

    def forget(self, engine: ServingEngine) -> None:
        """Close an engine; it is loaded again on its next use."""
        self._loaded = {key: each for key, each in self._loaded.items() if each is not engine}
        engine.close()

    def _make_torch(
        self, base: str, on_progress: Callable[[str], None], job: str | None
    ) -> ServingEngine:
        folder = models.prepare(models.find_base(base, self._home), self._home, on_progress)
        try:
            from rftkit.server.engine.torch.engine import TorchEngine
        except ImportError as error:
            raise MissingExtraError(error.name or "torch", "local") from error
        # loading may hang: the folder's config decides what runs, and its chat template is code
        with self.watch(f"loading {base}", _load_seconds(folder), job):
            engine = TorchEngine(folder, name=base)
            # ignore it here: a chat that needs this model reports it
            with contextlib.suppress(Exception):
                engine.encode([{"role": "user", "content": "Hello"}], None, None)
        return engine

    def _make_tinker(
        self, base: str, on_progress: Callable[[str], None], job: str | None
    ) -> ServingEngine:
        from rftkit.server.engine.tinker.engine import TinkerEngine

        there = remote.remote_of(self._home)
        assert there is not None  # `remote.kind_of` found it
        return TinkerEngine(there, name=base, api_key=settings.tinker_api_key())


def _load_seconds(folder: Path) -> float:
    """Return how long loading a folder may take; large weights get more time."""
    sizes = (file.stat().st_size for file in folder.glob("*") if file.is_file())
    return LOAD_SECONDS + sum(sizes) / LOAD_BYTES_PER_SECOND


def kind_of_model(model: Model) -> str | None:
    """Return the engine that a fine-tuned model needs; None if the operator's choice works."""
    return remote.kind_of_folder(Path(model.folder))
