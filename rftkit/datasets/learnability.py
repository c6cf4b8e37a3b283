"""Can this model learn from these rows? Run it on some of them and compare the rewards.

A group whose answers all earn the same reward teaches nothing by itself. So only rows *in between*
teach: those the model sometimes gets right; and rows that are wrong, if a reference answer guides
their group (metadata `guidance`). `preview` samples at temperature 1 from any service, grades
locally, and reports which rows those are. Rates of a row have a Wilson interval over its answers,
shares have an interval over rows (`evals.stats`).

Few answers cannot prove that a row has no spread: a row that is right nine times in ten looks
always right in four answers two times in three. Failed grades and answers that never arrived are
left out and counted; they are never zero.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.datasets.findings import Finding, Place
from rftkit.datasets.rowfile import open
from rftkit.datasets.rowlines import NumberedRow
from rftkit.datasets.sampled import KINDS, Kind, SampledRow, suggest_threshold
from rftkit.datasets.writing import write_lines
from rftkit.diagnosis import CUT_SHARE, never_sampled, share_words
from rftkit.errors import InputError
from rftkit.graders import Sample, compile_grader
from rftkit.graders.calls import Calls, calling
from rftkit.graders.closed import Shares, answer_fields, shares
from rftkit.graders.references import reference_answer
from rftkit.rows import Row

if TYPE_CHECKING:
    import pandas as pd
    from openai import OpenAI

    from rftkit.evals import Estimate

__all__ = ["Preview", "SampledRow", "preview", "spread_rows"]

FEW_USEFUL = 0.3
MAX_FLAT = 0.5


@dataclass(frozen=True, slots=True)
class Preview:
    """What a model earned on some rows; print it, or use `findings` and `to_frame`."""

    model: str
    completions: int
    """Completions requested for each row."""
    rows: tuple[SampledRow, ...]
    pass_threshold: float
    """Reward from which an answer counts as right: the given one, else the suggested one."""
    answers: Mapping[str, Shares] = field(default_factory=dict)
    """Place of a closed answer -> how often each value was sampled, and is a reference."""
    num_cut: int = 0
    """Answers that ended at their token limit; they earn the floor reward."""
    has_references: bool = False
    """Whether every row has a reference answer, which guides a job of rftkit's platform."""

    def numbers(self, kind: Kind) -> list[int]:
        """Return the numbers of the rows of one kind."""
        return [row.place.number for row in self.rows if row.kind(self.pass_threshold) == kind]

    def share(self, kind: Kind) -> Estimate:
        """Return the share of the known rows that are of one kind, with a 95 % interval."""
        known = [row.kind(self.pass_threshold) for row in self.rows]
        return _interval([float(each == kind) for each in known if each != "unknown"], (0.0, 1.0))

    def flat_share(self, group_size: int) -> Estimate:
        """Estimate the share of groups without signal in a job with groups of this size."""
        chances = [row.flat_chance(group_size) for row in self.rows]
        return _interval([chance for chance in chances if chance is not None])

    def mean(self) -> Estimate:
        """Return the mean reward of the model over rows."""
        return _interval([row.mean for row in self.rows if row.mean is not None])

    def to_frame(self) -> pd.DataFrame:
        """Return one line per row: pass rate with its interval, mean, spread, kind."""
        import pandas as pd

        return pd.DataFrame(self.records())

    def records(self) -> list[dict[str, Any]]:
        """Return the same as plain data."""
        return [self._record(row) for row in self.rows]

    def _record(self, row: SampledRow) -> dict[str, Any]:
        passes, n = row.passes(self.pass_threshold), len(row.graded)
        rate = _interval([1.0] * passes + [0.0] * (n - passes), (0.0, 1.0))
        return {
            "row": row.place.number,
            "line": row.place.line,
            "kind": row.kind(self.pass_threshold),
            "pass_rate": rate.value,
            "low": rate.low,
            "high": rate.high,
            "mean_reward": row.mean,
            "spread": row.spread,
            "num_graded": n,
            "num_missing": len(row.rewards) - n,
        }

    def write_useful(self, source: str | Path, target: str | Path) -> int:
        """Copy the rows in between to a new file and return how many there are.

        Raises:
            InputError: No sampled row is in between.
        """
        useful = self.numbers("in between")
        if not useful:
            raise InputError("no sampled row is in between; sample more rows or completions")
        with open(source) as rows:
            return write_lines(target, rows.lines_at(useful))

    def findings(self, group_size: int | None = None) -> list[Finding]:
        """Return what this means for a job with `group_size` completions per prompt."""
        size = group_size or self.completions
        return [
            *self._kinds(),
            *self._flat(size),
            *self._answers(),
            *self._threshold(),
            *self._cut(),
            *self._trouble(),
        ]

    def _kinds(self) -> Iterator[Finding]:
        useful = self.share("in between")
        if useful.value is None:
            return
        counts = ", ".join(f"{len(self.numbers(kind))} {kind}" for kind in KINDS)
        is_few = useful.high is not None and useful.high < FEW_USEFUL
        yield Finding(
            "warning" if is_few else "info",
            "learnability",
            f"{self.model}, {self.completions} completions for each of {len(self.rows)} rows: mean "
            f"reward {_said(self.mean(), False)}; rows: {counts}; in between: {_said(useful)}",
            _advice(
                "too few rows teach this model anything by its own answers; ",
                "try easier prompts, partial credit in the grader, or a stronger model",
                guided=self.has_references,
            )
            if is_few
            else "",
            figures={kind: len(self.numbers(kind)) for kind in KINDS},
        )

    def _flat(self, size: int) -> Iterator[Finding]:
        share = self.flat_share(size)
        if share.value is None:
            return
        beyond = "" if size <= self.completions else "; extrapolated beyond what was sampled"
        yield Finding(
            "warning" if share.value > MAX_FLAT else "info",
            "flat_groups",
            f"expect {_said(share)} of groups of {size} completions to earn all the same{beyond}",
            _advice(
                "such a group teaches nothing by itself; ",
                "train on the rows in between only, or raise compute_multiplier",
                guided=self.has_references,
            )
            if share.value > MAX_FLAT
            else "",
            figures={"group_size": size, "share": share.value},
        )

    def _answers(self) -> Iterator[Finding]:
        for name, found in self.answers.items():
            missing = {
                value: share
                for value, share in found.references.items()
                if share and not found.samples.get(value)
            }
            said = f"`{name}`: {share_words(asdict(found))}"
            yield Finding("info", "answer_shares", said, figures={"answer": name, **asdict(found)})
            for each in never_sampled(name, missing, found.num_samples):
                yield Finding("warning", each.code, each.message, each.advice)

    def _threshold(self) -> Iterator[Finding]:
        suggested = suggest_threshold(self.rows)
        if suggested is not None:
            yield Finding(
                "info",
                "pass_threshold",
                f"a pass_threshold of {suggested:g} separates the answers to one row most often",
                figures={"pass_threshold": suggested},
            )

    def _cut(self) -> Iterator[Finding]:
        asked = len(self.rows) * self.completions
        if self.num_cut:
            yield Finding(
                "warning" if self.num_cut > CUT_SHARE * asked else "info",
                "cut_off",
                f"{self.num_cut} of {asked} completions were cut off at their token limit, and "
                "earn the floor reward whatever they say",
                "raise max_completion_tokens, or ask for shorter answers in the prompt",
                figures={"num_cut": self.num_cut, "num_completions": asked},
            )

    def _trouble(self) -> Iterator[Finding]:
        missing = [row for row in self.rows if row.trouble]
        if missing:
            count = sum(len(row.rewards) - len(row.graded) for row in missing)
            yield Finding(
                "warning",
                "not_graded",
                f"{count} of {len(self.rows) * self.completions} completions have no reward, and "
                "are left out",
                "see the reasons; a job in which more than 5 % of the grades fail pauses",
                len(missing),
                tuple(row.place for row in missing),
                tuple(f"{row.place}: {'; '.join(row.trouble)}" for row in missing),
            )


def preview(
    client: OpenAI,
    model: str,
    rows: Sequence[NumberedRow],
    *,
    grader: Mapping[str, Any],
    source: str = "rows",
    response_format: Mapping[str, Any] | None = None,
    completions: int = 8,
    pass_threshold: float | None = None,
    concurrency: int = 8,
    progress: Callable[[int, int], None] | None = None,
    grader_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Preview:
    """Sample the model several times on each row, grade the answers, and find the rows that teach.

    Args:
        client: From `rftkit.connect()`, or any `openai.OpenAI`.
        model: The base model of the job to come.
        rows: The rows to use, such as `spread_rows(source, 24)`.
        grader: Grader spec, as on the wire.
        source: The name of the rows' file in places.
        response_format: The response format of the job.
        completions: For each row.
        pass_threshold: Reward from which an answer is right; default as suggested by the rewards.
        concurrency: Rows under way at the same time.
        progress: Called with rows done and all rows.
        grader_options: Options of `compile_grader`, such as a judge's call.
        options: More arguments of `chat.completions.create`, such as `max_completion_tokens`.

    Raises:
        InputError: No row can be used, or fewer than two completions are requested.
    """
    usable = [(each, each.row) for each in rows if each.row is not None]
    if not usable:
        raise InputError("there is no usable row to run the model on")
    if completions < 2:
        raise InputError(f"at least 2 completions per row are needed, found {completions}")
    if response_format is not None:
        options["response_format"] = response_format
    sampled: list[SampledRow] = []
    said: list[Sample] = []
    with (
        compile_grader(grader, groups=True, **(grader_options or {})) as compiled,
        calling(concurrency) as (pool, calls),
    ):
        asked = pool.map(
            lambda pair: _ask(client, calls, model, pair[1], completions, options), usable
        )
        for done, ((each, row), (samples, error)) in enumerate(zip(usable, asked, strict=True), 1):
            said += samples
            grades = compiled.grade_together(samples, row.item)
            missing = completions - len(samples)
            why = {_why(grade.errors) for grade in grades if grade.reward is None}
            sampled.append(
                SampledRow(
                    Place(source, each.number, each.line),
                    (*(grade.reward for grade in grades), *([None] * missing)),
                    (*(sample.output_text for sample in samples), *([""] * missing)),
                    tuple(sorted(why | ({error} if error else set()))),
                )
            )
            if progress is not None:
                progress(done, len(usable))
    threshold = pass_threshold if pass_threshold is not None else suggest_threshold(sampled)
    items = [row.item for _, row in usable]
    answers = {
        each.name: shares(each, said, items)
        for each in answer_fields(compiled.spec, response_format, items)
        if each.values
    }
    references = (reference_answer(item, response_format, grader=compiled.spec) for item in items)
    return Preview(
        model,
        completions,
        tuple(sampled),
        0.5 if threshold is None else threshold,
        answers,
        sum(each.truncated for each in said),
        all(each is not None for each in references),
    )


def _advice(why: str, otherwise: str, *, guided: bool) -> str:
    """What to do where the model's own answers teach little."""
    guide = "on rftkit's platform reference answers guide the job (metadata `guidance`), elsewhere "
    return f"{why}{guide if guided else ''}{otherwise}"


def spread_rows(source: str | Path | pd.DataFrame, count: int) -> list[NumberedRow]:
    """Return about `count` usable rows, spread evenly over a dataset."""
    with open(source) as rows:
        rows.wait()
        stride = max(1, -(-len(rows) // max(1, count)))
        return [each for each in rows.rows_at(range(0, len(rows), stride)) if each.row]


def _ask(
    client: OpenAI,
    calls: Calls,
    model: str,
    row: Row,
    completions: int,
    options: Mapping[str, Any],
) -> tuple[list[Sample], str | None]:
    """Request the completions of a row; fewer, and the reason, when requests fail."""
    from openai import OpenAIError

    samples: list[Sample] = []
    chosen: Any = {"temperature": 1, **options}
    if row.tools:
        chosen["tools"] = row.tools
    while len(samples) < completions:  # some services return fewer than requested
        request = functools.partial(
            client.chat.completions.create,
            model=model,
            messages=row.messages,
            n=completions - len(samples),
            **chosen,
        )
        try:
            reply = calls.run(request, None)
        except OpenAIError as error:
            return samples, str(error)
        if not reply.choices:
            return samples, "the service gave no choices"
        format_ = chosen.get("response_format")
        samples += [_sample(choice, format_, model) for choice in reply.choices]
    return samples[:completions], None


def _sample(choice: Any, response_format: Mapping[str, Any] | None, model: str) -> Sample:
    return Sample.from_text(
        choice.message.content or "",
        response_format=response_format,
        truncated=choice.finish_reason == "length",
        tool_calls=[call.to_dict() for call in choice.message.tool_calls or []],
        model=model,
    )


def _why(errors: Mapping[str, Any]) -> str:
    details = [value for value in errors.values() if isinstance(value, str) and value]
    return "; ".join(details or errors)


def _interval(values: list[float], support: tuple[float, float] | None = None) -> Estimate:
    import numpy as np

    from rftkit.evals.stats import mean_interval

    if values and set(values) <= {0.0, 1.0}:
        support = (0.0, 1.0)
    return mean_interval(np.array(values, dtype=np.float64), support=support)


def _said(estimate: Estimate, is_share: bool = True) -> str:
    form = "{:.0%}" if is_share else "{:.2f}"
    if estimate.value is None:
        return "unknown"
    if estimate.low is None or estimate.high is None:
        return form.format(estimate.value)
    least = max(0.0, estimate.low) if is_share else estimate.low
    low, high = form.format(least), form.format(estimate.high)
    return f"{form.format(estimate.value)} (95 % interval {low} to {high})"
