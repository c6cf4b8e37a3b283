"""Files of JSON lines that only grow, and are safe against a kill in the middle of a line.

Each line is written between two newlines: the first one ends a line that a kill left open. A reader
skips lines that are not JSON. `wholefile` writes files that are replaced as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rftkit.jsontext import parse_json

__all__ = ["append_json", "json_line", "json_values"]


def json_line(value: Any) -> bytes:
    """Return the bytes that append a value to a file: its JSON between two newlines."""
    return b"\n" + json.dumps(value, separators=(",", ":")).encode() + b"\n"


def append_json(path: Path, value: Any) -> None:
    """Append a value in one write, which survives a kill of the process but not a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write(json_line(value))


def json_values(path: Path) -> Iterator[Any]:
    """Yield the values of a file, oldest first, without broken lines; none if it does not exist."""
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for line in lines:
            try:
                yield parse_json(line.decode(errors="replace"))
            except ValueError:
                continue
