"""A finding: what keeps a job from learning, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason why a job does not learn what it should."""

    code: str
    """Stable name of the rule."""
    subject: str
    """The grader or the place of the answer that it is about; empty for the whole job."""
    message: str
    """What was found: a sentence."""
    advice: str
    """What to do, and the setting to try: a sentence."""
    alarm: Mapping[str, Any] | None = None
    """For an alarm: its name, step, figures, evidence and the rate of false alarms."""

    @property
    def key(self) -> str:
        """Identifies the finding within a job, even when its figures change."""
        return f"{self.code}:{self.subject}" if self.subject else self.code

    def __str__(self) -> str:
        return f"{self.message} {self.advice}"
