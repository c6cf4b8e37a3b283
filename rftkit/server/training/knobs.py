"""Settings that the protocol has no field for, read from a job's metadata. Pure."""

from __future__ import annotations

import json
import math

from rftkit.errors import RequestError

__all__ = ["Knobs", "refusal"]


class Knobs:
    """The metadata of one job, read setting by setting.

    Raises:
        RequestError: from each reader, naming the setting and what it must be.
    """

    def __init__(self, metadata: dict[str, str]) -> None:
        """`metadata` is of the job."""
        self._metadata = metadata

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number within bounds."""
        value = self.optional_number(name)
        if value is None:
            return default
        if not low <= value <= high:
            raise refusal(name, f"a number from {low:g} to {high:g}", self._metadata[name])
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number within bounds."""
        value = self.number(name, default, low, high)
        if value != int(value):
            raise refusal(name, "a whole number", self._metadata[name])
        return int(value)

    def optional_number(self, name: str) -> float | None:
        """A finite number, or None."""
        if name not in self._metadata:
            return None
        try:
            value = float(json.loads(self._metadata[name]))
        except (ValueError, TypeError):
            raise refusal(name, "a number", self._metadata[name]) from None
        if not math.isfinite(value):
            raise refusal(name, "a finite number", self._metadata[name])
        return value

    def positive(self, name: str) -> float | None:
        """A number above 0, or None."""
        value = self.optional_number(name)
        if value is not None and value <= 0:
            raise refusal(name, "a number above 0", self._metadata[name])
        return value

    def mark(self, name: str, default: str | None) -> str | None:
        """The mark that opens thoughts; None for none."""
        value = self._metadata.get(name, default)
        if value in (None, "none"):
            return None
        if not (3 <= len(value) <= 64 and value[0] in "<[" and value[1] != "/"):
            raise refusal(name, "the mark that opens thoughts, as <think>, or none", value)
        return value

    def key(self, name: str, default: str) -> str | None:
        """A key of the rows; None for none."""
        value = self._metadata.get(name, default)
        if not value.strip():
            raise refusal(name, "a key of the rows, auto or none", value)
        return None if value == "none" else value

    def word(self, name: str, default: str, known: tuple[str, ...]) -> str:
        """One of the known words."""
        value = self._metadata.get(name, default)
        if value not in known:
            raise refusal(name, "one of " + ", ".join(known), value)
        return value


def refusal(name: str, expected: str, found: str) -> RequestError:
    """The error of a setting."""
    return RequestError(
        f"metadata `{name}` must be {expected}, found {found!r}", param=f"metadata.{name}"
    )
