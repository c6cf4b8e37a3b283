"""A ladder that was climbed: its rungs compared on the same test rows, and which was worth it.

The comparison is `rftkit.evals.compare` with the base as the baseline: intervals and verdicts are
corrected for the number of rungs, and the rungs that cannot be ruled out as the best are known with
the same confidence. The cost of a rung is what it took to make, with the rung it starts from. Not
here: doing rungs (`climb`), and showing them (`rftkit.views`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit import evals
from rftkit.errors import InputError
from rftkit.evals import Comparison, Estimate, saved_runs
from rftkit.ladder.rungs import LABELS
from rftkit.ladder.state import RungState, State, read_state

__all__ = ["Ladder", "read"]


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """The rungs of a ladder with their results."""

    about: Mapping[str, Any]
    """The data, the grader and the plan, as plain values."""
    rungs: tuple[RungState, ...]
    """The rungs from the bottom up; a rung without a result has an error."""
    comparison: Comparison
    """The comparison of the rungs that have a result; labels are those of `LABELS`."""

    @property
    def best(self) -> str | None:
        """The label with the highest mean reward; None with fewer than two rungs."""
        return self.comparison.choice.best if self.comparison.choice else None

    @property
    def worth(self) -> str | None:
        """The label of the cheapest rung that cannot be ruled out as the best."""
        choice = self.comparison.choice
        if choice is None:
            return None
        return min(choice.tied, key=lambda label: (self.seconds(label), _place(label)))

    @property
    def sentence(self) -> str:
        """Which rung was worth it."""
        best, worth = self.best, self.worth
        if best is None or worth is None:
            return "There is one rung, so that nothing can be compared."
        rows = f"{self.comparison.summary(worth).num_rows:,} test rows"
        if worth == best == self.comparison.baseline:
            mean = self._mean(best)
            return f"{best} earns the most ({mean} on {rows}): no rung is shown worth its cost."
        if worth == best:
            return (
                f"{best} earns the most ({self._mean(best)} on {rows}, {self._cost(best)}), and "
                "every cheaper rung is shown to earn less."
            )
        found = self._behind(worth, best)
        interval = "" if found.low is None else f", {found.low:+.2f} to {found.high:+.2f}"
        return (
            f"{worth} ({self._mean(worth)} on {rows}, {self._cost(worth)}) is the cheapest rung "
            f"that could be the best on new rows; {best} earned the most ({self._mean(best)}, "
            f"{self._cost(best)}). The difference is {found.value:+.2f}{interval}."
        )

    def _behind(self, worth: str, best: str) -> Estimate:
        """How much more the best rung earned, corrected for the number of rungs."""
        return evals.compare(self.comparison.samples, baseline=worth).pair(best).difference

    def records(self) -> list[dict[str, Any]]:
        """A line for each rung, for a table."""
        return [self._record(each) for each in self.rungs]

    def seconds(self, label: str) -> float:
        """Seconds that a rung took to make, with the rung it starts from."""
        return sum(each.seconds or 0.0 for each in self._path(label))

    def tokens(self, label: str) -> int:
        """Tokens that a rung took to make, with the rung it starts from."""
        return sum(each.tokens or 0 for each in self._path(label))

    def to_dict(self) -> dict[str, Any]:
        """The figures, for programs."""
        return {
            "sentence": self.sentence,
            "best": self.best,
            "worth": self.worth,
            "rungs": self.records(),
        }

    def facts(self) -> dict[str, Any]:
        """The settings, and the job or prompt file of each rung, for a page."""
        plan = self.about.get("plan") or {}
        made = {
            f"{LABELS[each.rung]} was made by": each.job or _name(each.prompt) or "nothing to make"
            for each in self.rungs
        }
        return {"data": self.about.get("data"), **plan, **made}

    def sources(self) -> dict[str, Any]:
        """The sources, for `reports.made_from`."""
        files = (self.about.get("files") or {}).items()
        found = {f"{name} rows": Path(path) for name, path in files if Path(path).is_file()}
        specs = {name: self.about.get(name) for name in ("grader", "response_format")}
        return {**found, **{name: spec for name, spec in specs.items() if spec}}

    def _path(self, label: str) -> list[RungState]:
        by_rung = {each.rung: each for each in self.rungs}
        rung = next((each for each in by_rung if LABELS[each] == label), None)
        path: list[RungState] = []
        while rung is not None and rung in by_rung and rung != "base":
            path.append(by_rung[rung])
            rung = by_rung[rung].parent
        return path

    def _mean(self, label: str) -> str:
        value = self.comparison.summary(label).reward.value
        return "not graded" if value is None else f"{value:.2f}"

    def _cost(self, label: str) -> str:
        seconds, tokens = self.seconds(label), self.tokens(label)
        return "at no cost" if label == LABELS["base"] else f"{seconds:,.0f} s, {tokens:,} tokens"

    def _record(self, each: RungState) -> dict[str, Any]:
        label = LABELS[each.rung]
        run = next((run for run in self.comparison.runs if run.label == label), None)
        pair = next((pair for pair in self.comparison.pairs if pair.after == label), None)
        parent = "" if each.rung in ("base", "prompt") else LABELS[each.parent]
        return {
            "rung": label,
            "starts from": parent,
            "reward": run and run.reward.value,
            **({name: estimate.value for name, estimate in run.graders.items()} if run else {}),
            "difference from base": pair and pair.difference.value,
            "low": pair and pair.difference.low,
            "high": pair and pair.difference.high,
            "verdict": pair.verdict if pair else "",
            "fixed": len(pair.fixed_rows) if pair else None,
            "broken": len(pair.broken_rows) if pair else None,
            "seconds": _whole(each.seconds),
            "tokens": each.tokens,
            "seconds in all": _whole(self.seconds(label)),
            "tokens in all": self.tokens(label),
            "note": each.error or " ".join(each.notes),
        }


def _whole(seconds: float | None) -> float | None:
    """Seconds, rounded as jobs report them."""
    return round(seconds) if seconds and seconds >= 1 else seconds


def _name(path: str | None) -> str:
    """The name of a prompt file; a page does not say where on this machine it is."""
    return Path(path).name if path else ""


def read(source: str | Path | State) -> Ladder:
    """Read a ladder with the answers that are saved in the home folder.

    Args:
        source: The state file, or what `climb` returned.

    Raises:
        InputError: It is no state file, or no rung has a result here.
    """
    state = source if isinstance(source, State) else read_state(source)
    wanted = state.about.get("rungs") or list(LABELS)
    rungs = [state.rungs[rung] for rung in LABELS if rung in state.rungs and rung in wanted]
    done = [each for each in rungs if each.run and saved_runs.find(each.run) is not None]
    if not done:
        raise InputError(
            f"{state.path}: no rung has answers in this home; run the command again to make them"
        )
    samples = evals.kept(*(str(each.run) for each in done))
    return Ladder(state.about, tuple(rungs), evals.compare(samples, baseline=samples.labels[0]))


def _place(label: str) -> int:
    return list(LABELS.values()).index(label)
