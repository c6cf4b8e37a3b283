"""Settings that the protocol has no field for, read from a job's metadata. Pure.

Names, bounds and defaults are in `rftkit.hyperparameters`.
"""

from __future__ import annotations

import math

from rftkit.errors import RequestError
from rftkit.hyperparameters import KNOBS, Number, Words
from rftkit.jsontext import parse_json

__all__ = ["Knobs"]


class Knobs:
    """The metadata of one job, read setting by setting.

    Raises:
        RequestError: from each reader, naming the setting and what it must be.
    """

    def __init__(self, metadata: dict[str, str]) -> None:
        """`metadata` is of the job."""
        self._metadata = metadata

    def number(self, name: str) -> float:
        """A number within its bounds."""
        return self._number(name, _number(name))

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number within its bounds; `default` replaces that of the table."""
        known = _number(name)
        if default is not None and name not in self._metadata:
            return default
        value = self._number(name, known)
        if value != int(value):
            raise _refusal(name, "a whole number", self._metadata[name])
        return int(value)

    def optional_number(self, name: str) -> float | None:
        """A finite number, or None."""
        if name not in self._metadata:
            return None
        try:
            value = float(parse_json(self._metadata[name]))
        except (ValueError, TypeError):
            raise _refusal(name, "a number", self._metadata[name]) from None
        if not math.isfinite(value):
            raise _refusal(name, "a finite number", self._metadata[name])
        return value

    def positive(self, name: str) -> float | None:
        """A number above 0, or None."""
        value = self.optional_number(name)
        if value is not None and value <= 0:
            raise _refusal(name, "a number above 0", self._metadata[name])
        return value

    def think_tag(self, name: str, default: str | None) -> str | None:
        """The tag that opens a model's reasoning; None for none."""
        value = self._metadata.get(name, default)
        if value in (None, "none"):
            return None
        if not (3 <= len(value) <= 64 and value[0] in "<[" and value[1] != "/"):
            raise _refusal(
                name, "the tag that opens the reasoning, such as <think>, or none", value
            )
        return value

    def key(self, name: str, default: str) -> str | None:
        """A key of the rows; None for none."""
        value = self._metadata.get(name, default)
        if not value.strip():
            raise _refusal(name, "a key of the rows, auto or none", value)
        return None if value == "none" else value

    def word(self, name: str, default: str | None = None) -> str:
        """One of the setting's words; `default` replaces that of the table."""
        known = KNOBS[name]
        assert isinstance(known, Words)
        value = self._metadata.get(name, default or known.default)
        if value not in known.words:
            raise _refusal(name, "one of " + ", ".join(known.words), value)
        return value

    def _number(self, name: str, known: Number) -> float:
        value = self.optional_number(name)
        if value is None:
            return known.default
        if not known.low <= value <= known.high:
            expected = f"a number from {known.low:g} to {known.high:g}"
            raise _refusal(name, expected, self._metadata[name])
        return value


def _number(name: str) -> Number:
    known = KNOBS[name]
    assert isinstance(known, Number)
    return known


def _refusal(name: str, expected: str, found: str) -> RequestError:
    return RequestError(
        f"metadata `{name}` must be {expected}, found {found!r}", param=f"metadata.{name}"
    )
