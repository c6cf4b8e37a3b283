"""What other processes do to a store while a test reads it. Kept here and not in a test module:
a spawned process imports its target by name, and finds only what is in `tests/` itself."""

from __future__ import annotations

from pathlib import Path

from rftkit.server.store.store import Store


def write_events(home: Path, job_id: str, writer: int, count: int) -> None:
    """Write `count` events of this writer's own, as many that all writers share, and files."""
    store = Store.open(home)
    for number in range(count):
        store.add_event(job_id, f"{writer}/{number}", key=f"{writer}/{number}")
        store.add_event(job_id, "once", key=f"shared/{number}")
        store.add_file(f"{number}".encode(), "a.jsonl", "fine-tune")
    store.close()
