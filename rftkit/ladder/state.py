"""What is known about the rungs of a ladder, in a small JSON file next to its page.

Each rung is written as soon as something of it is known, so that a second start resumes. Jobs carry
the same keys in their metadata (`ladder`, `rung`), so that a rung is found without the file too.
Not here: answers, which are local runs in the home folder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rftkit.errors import InputError
from rftkit.jsondocuments import read_document
from rftkit.wholefile import write_whole

__all__ = ["RungState", "State", "read_state"]

FORMAT = 1


@dataclass(frozen=True, slots=True)
class RungState:
    """The state of one rung."""

    rung: str
    key: str
    """The digest of everything that decides its result (`rungs.key_of`)."""
    parent: str = "base"
    """The rung whose model it starts from."""
    model: str | None = None
    """The model that answers the test rows."""
    job: str | None = None
    """`ftjob-…` of a rung that trains."""
    prompt: str | None = None
    """Path of the prompt file."""
    run: str | None = None
    """`localrun_…` with its answers to the test rows; None while it is not finished."""
    seconds: float | None = None
    """Seconds that the rung itself took, without its parent and without the test rows; None if
    unknown."""
    tokens: int | None = None
    """Tokens it read, wrote or trained on, as the service counted them."""
    notes: tuple[str, ...] = ()
    """What a reader should know of it."""
    error: str | None = None
    """Why there is no result."""

    @property
    def is_done(self) -> bool:
        """Whether its answers are there."""
        return self.run is not None


@dataclass(slots=True)
class State:
    """All rungs of a ladder; `put` writes the file."""

    path: Path
    about: dict[str, Any] = field(default_factory=dict)
    """The data, the model and the settings, for the page."""
    rungs: dict[str, RungState] = field(default_factory=dict)

    def put(self, rung: RungState) -> RungState:
        """Keep what is known of a rung."""
        self.rungs[rung.rung] = rung
        value = {
            "format": FORMAT,
            "about": self.about,
            "rungs": [asdict(each) for each in self.rungs.values()],
        }
        write_whole(self.path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
        return rung

    def update(self, rung: str, **changes: Any) -> RungState:
        """Change what is known of a rung."""
        return self.put(replace(self.rungs[rung], **changes))


def read_state(path: str | Path, *, is_new: bool = False) -> State:
    """Read the state of a ladder; with `is_new`, a file that is missing is an empty state.

    Raises:
        InputError: The file is missing, or holds something else.
    """
    path = Path(path)
    if not path.exists():
        if is_new:
            return State(path)
        raise InputError(f"{path}: there is no such file; rftkit ladder writes one")
    value = read_document(path)
    if not isinstance(value, dict) or value.get("format") != FORMAT or "rungs" not in value:
        raise InputError(f"{path}: this is no ladder; choose another --out, or remove the file")
    try:
        rungs = [RungState(**{**each, "notes": tuple(each["notes"])}) for each in value["rungs"]]
    except (TypeError, KeyError) as error:
        raise InputError(f"{path}: this is no ladder that this version can read: {error}") from None
    return State(path, value.get("about") or {}, {each.rung: each for each in rungs})
