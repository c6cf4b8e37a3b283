"""Calls that the tests of the importer share: save an account of the stub, read what was saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from importer_stub import (
    KEY,
    Stub,
)

from rftkit.importer import Origin, Remote, Summary, import_account
from rftkit.importer.dump import Dump


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def save(
    stub: Stub, folder: Path, *, clock: Clock | None = None, said: list[str] | None = None,
    timeout_seconds: float = 5.0, **options: Any,
) -> Summary:  # fmt: skip
    clock, said = clock or Clock(), [] if said is None else said
    remote = Remote(
        Origin(stub.url, KEY),
        on_progress=said.append,
        timeout_seconds=timeout_seconds,
        clock=clock,
        sleep=clock.sleep,
    )
    try:
        return import_account(remote, folder, on_progress=said.append, **options)
    finally:
        remote.close()


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """The objects of a JSONL file, packed or not."""
    with Dump(folder).open(name) as file:
        return [json.loads(line) for line in file]


def ids(folder: Path, name: str) -> list[str]:
    return [entry["id"] for entry in lines(folder, name)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a dump but the manifest, which holds times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
