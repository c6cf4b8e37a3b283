"""The result of a check: findings with severity, rows and advice, and the whole check.

Values only. Not here: how problems are found (`check`), and how a page shows them
(`rftkit.views`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from rftkit.errors import InputError
from rftkit.examples import Form

__all__ = ["Check", "FileFacts", "Finding", "Place", "sorted_findings"]

Severity = Literal["error", "warning", "info"]
LISTED_ROWS = 5
ORDER = ("error", "warning", "info")


class Place(NamedTuple):
    """The place of a row; prints as `file:line`."""

    file: str
    number: int
    """Row of the file, from 0."""
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of the check."""

    severity: Severity
    """An error stops a job; a warning spoils it; the rest is good to know."""
    code: str
    """Stable name of the kind of finding."""
    message: str
    advice: str = ""
    """What the user can do about it."""
    count: int = 0
    """How many rows it concerns; 0 when it concerns the whole dataset."""
    places: tuple[Place, ...] = ()
    """The first hundred of them."""
    details: tuple[str, ...] = ()
    """What is wrong with each of `places`, if the message does not say it for all of them."""
    figures: dict[str, Any] = field(default_factory=dict)
    """The numbers in the message, for programs."""

    def __str__(self) -> str:
        lines = [f"{self.severity:<8}{self.message}"]
        if self.details:
            lines += [f"        {detail}" for detail in self.details[:LISTED_ROWS]]
            lines += self._others()
        elif self.places:
            more = self.count - min(len(self.places), LISTED_ROWS)
            lines[0] += f" [{', '.join(map(str, self.places[:LISTED_ROWS]))}"
            lines[0] += f" and {more:,} more]" if more > 0 else "]"
        if self.advice and self.severity != "info":
            lines.append(f"        → {self.advice}")
        return "\n".join(lines)

    def _others(self) -> list[str]:
        more = self.count - min(len(self.details), LISTED_ROWS)
        return [f"        and {more:,} more"] if more > 0 else []


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One file that was checked."""

    role: str
    """train, valid or test."""
    name: str
    num_rows: int
    """Lines that are not blank; each is either usable or refused."""
    num_refused: int
    size: int
    """Bytes of the source; rows, for a frame."""
    form: Form = "reinforcement"
    """The form of its rows: reinforcement, supervised or preference."""


@dataclass(frozen=True, slots=True)
class Check:
    """Everything found, worst first. Printing it shows one paragraph per finding."""

    findings: tuple[Finding, ...]
    files: tuple[FileFacts, ...] = ()
    examples: dict[str, Any] = field(default_factory=dict)
    """`file:line` -> the row there (its text when it was refused), of rows that findings name."""

    @property
    def ok(self) -> bool:
        """Whether a job with this data can start."""
        return not any(finding.severity == "error" for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))

    def raise_for_errors(self) -> None:
        """Raise InputError with every error found, if there is one."""
        if not self.ok:
            errors = [str(each) for each in self.findings if each.severity == "error"]
            raise InputError("the dataset cannot be used:\n" + "\n".join(errors))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for a program."""
        findings = [
            asdict(each) | {"places": [place._asdict() for place in each.places]}
            for each in self.findings
        ]
        return {
            "ok": self.ok,
            "files": [asdict(each) for each in self.files],
            "findings": findings,
        }


def sorted_findings(findings: list[Finding]) -> tuple[Finding, ...]:
    """Sort by severity, worst first, then by the order in which they were found."""
    return tuple(sorted(findings, key=lambda finding: ORDER.index(finding.severity)))
