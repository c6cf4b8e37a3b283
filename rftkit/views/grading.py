"""Grades in detail: many answers in a table, one with every step, and an audit.

Not here: grading, and the answers of several models side by side (`answers`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rftkit import graders
from rftkit.graders.types import spec_type
from rftkit.jsontext import parse_json
from rftkit.views.answers import judged_lines
from rftkit.views.conversation import readable, reference
from rftkit.views.listing import NUMERIC, disclosure, table
from rftkit.views.markup import (
    Html,
    html,
    html_each,
    join,
    missing,
    note,
    number,
    signed,
    text,
    wrap,
)
from rftkit.views.rows import row_button
from rftkit.wording import cut

__all__ = ["audited", "failure", "grade_in_full", "grades", "spec_problem"]

Line = Mapping[str, Any]
"""`row`, `answer`, `reward`, `before`, `outcome`, `details`, and `reward/<key>` for each leaf."""

SAME = 0.0005
MARKS = {"graded": "✓ graded", "failed": "! the grader failed", "unscorable": "? unscorable"}
STALE = dict.fromkeys(MARKS, "– from the previous grader")
STALE_NOTE = "This grader cannot be used. The grades below are from the previous grader."
_STALE = html('<p class="rk-warn" role="status">! {}</p>', STALE_NOTE)
_FRAME = re.compile(r'File "grader\.py", line (\d+)')


def grades(
    lines: Sequence[Line],
    keys: Sequence[str],
    *,
    opened: int | None = None,
    live: bool = False,
    stale: bool = False,
) -> Html:
    """One line per answer: its rewards, and how they changed with the last edit of the grader.

    Args:
        lines: the graded answers.
        keys: of the sub-graders.
        opened: number of the row whose grade is shown in full.
        live: in a panel, where the numbers of the rows are buttons that open them.
        stale: the grader was edited since and does not work: these are no grades of it.
    """
    if not lines:
        return note("No grades yet. Choose rows and grade them.")
    moved = any(_change(line) is not None for line in lines)
    heads = ["row", "answer", *keys, "reward", *(["before", "change"] if moved else []), "outcome"]
    numeric = {"row", "reward", "before", "change", *keys}
    head = join(
        html('<th scope="col"{}>{}</th>', NUMERIC if name in numeric else "", name)
        for name in heads
    )
    marks = STALE if stale else MARKS
    body = join(_line(line, keys, moved, line["row"] == opened, live, marks) for line in lines)
    summary = Html() if stale else _summary(lines, moved)
    shown = _STALE * stale + (
        html(
            '<div class="rk-scroll" tabindex="0"><table class="rk-rows"><thead><tr>{}</tr></thead>'
            "<tbody>{}</tbody></table></div>{}",
            head,
            body,
            summary,
        )
    )
    words = f"{STALE_NOTE}\n" * stale + _plain(lines, keys)
    return wrap(shown, "rk-stale" if stale else "", plain=words)


def grade_in_full(
    line: Line,
    *,
    spec: Mapping[str, Any],
    grade: Mapping[str, Any],
    rendered: Sequence[Mapping[str, Any]],
    item: Mapping[str, Any],
    with_errors: bool = True,
) -> Html:
    """Every step of one grade: what was compared, what each part gave, and the formula.

    Args:
        line: as in `grades`.
        spec: normalised.
        grade: a `rftkit.graders.Grade` as a mapping.
        rendered: the templates, filled in (`rftkit.graders.tracing`).
        item: the row.
        with_errors: False where `failure` already shows the errors.
    """
    failed = grade["outcome"] == "failed"
    reward = "no reward" if failed else f"reward {number(grade['reward'])}"
    title = f"Row {line['row'] + 1}: {reward} in {_time(grade['seconds'])}"
    parts = [
        html('<h4 class="rk-place">{}</h4>', title),
        _errors(grade["errors"], spec, grade.get("sub_errors") or {}) if with_errors else Html(),
        _steps(spec, grade, rendered),
        _formula(spec, grade),
        _judged(grade.get("judged") or {}),
        html("<h4>Answer</h4>{}", disclosure(readable(line["answer"]), 600)),
        html(
            "<details><summary data-lm-suppress-shortcuts='true'>Row</summary>{}</details>",
            reference(dict(item)),
        ),
    ]
    return wrap(join(parts), "rk-full", plain=title)


def failure(line: Line, *, spec: Mapping[str, Any], grade: Mapping[str, Any]) -> Html:
    """Why one grade failed, with the line of the user's source, to show beside the editor."""
    shown = _errors(grade["errors"], spec, grade.get("sub_errors") or {})
    title = html("<h4>Row {} is not graded</h4>", line["row"] + 1)
    return wrap(title + shown, plain=str(line["details"]))


def audited(frame: Any, findings: Sequence[str], num_rows: int) -> Html:
    """What cheap tricks earn compared with the reference answers (`rftkit.graders.audit`).

    Args:
        frame: of `Audit.to_frame`.
        findings: what to fix, as sentences.
        num_rows: rows tried.
    """
    rows = [
        {
            "answer": line["answer"],
            "earns": line["mean"],
            "beats the reference in": _share(line["beats"]),
            "failed": _count(line["num_failed"]),
            "unscorable": _count(line["num_unscorable"]),
        }
        for line in frame.to_dict("records")
    ]
    items = html_each('<li><span class="rk-warn">!</span> {}</li>', findings) or Html(
        '<li><span class="rk-good">✓</span> no cheat pays</li>'
    )
    caption = f"What the grader rewards, {num_rows} rows"
    shown = table(rows, caption=caption, noun="answer")
    plain = "\n".join([caption, *(findings or ["no cheat pays"])])
    return join([shown, wrap(html('<ul class="rk-plain">{}</ul>', items))], plain)


def spec_problem(problem: str, words: str) -> Html:
    """Why a grader cannot be used, with the lines around the one that the problem names.

    Args:
        problem: message of a GraderSpecError; `line 3 …` is a line of the JSON, or of the python
            source when the problem is about one.
        words: the spec as JSON text.
    """
    found = re.search(r"\bline (\d+)", problem)
    shown = _numbered(_source_in(words, problem) or words, int(found[1])) if found else Html()
    message = f"! {problem}"
    return wrap(
        html('<div class="rk-alert" role="alert"><strong>{}</strong>{}</div>', message, shown),
        plain=message,
    )


def _source_in(words: str, problem: str) -> str | None:
    """The python source that a problem such as `graders.a.source: …` is about."""
    if "source" not in problem:
        return None
    spec = parse_json(words)
    parts = graders.parts(spec)
    named = [part for key, part in parts.items() if f"graders.{key}.source" in problem]
    return next((part["source"] for part in [*named, *parts.values()] if "source" in part), None)


def _numbered(source: str, line: int | None, *, around: int = 4) -> Html:
    """The numbered lines around one line of a source, with that line highlighted."""
    lines = source.splitlines()
    at = line if line is not None and 1 <= line <= len(lines) else 1
    first, last = max(1, at - around), min(len(lines), at + around)
    shown = []
    for place in range(first, last + 1):
        mark = "▶" if place == line else " "
        words = text(f"{mark}{place:>4}  {lines[place - 1]}")
        shown.append(html("<mark>{}</mark>", words) if place == line else words)
    return html("<pre>{}</pre>", Html("\n").join(shown))


def _line(
    line: Line,
    keys: Sequence[str],
    moved: bool,
    opened: bool,
    live: bool,
    marks: Mapping[str, str],
) -> Html:
    state = Html(' class="rk-opened" aria-current="true"') if opened else Html()
    at = line["row"]
    change = _change(line)
    tone = "" if change is None else "rk-good" if change > 0 else "rk-bad" if change < 0 else ""
    sign = "" if not change else " ▲" if change > 0 else " ▼"
    cells = [
        html("<td{}>{}</td>", NUMERIC, row_button(at) if live else at + 1),
        html("<td>{}</td>", _short(line["answer"])),
        *(html("<td{}>{}</td>", NUMERIC, number(line.get(f"reward/{key}"))) for key in keys),
        html("<td{}><b>{}</b></td>", NUMERIC, number(line["reward"])),
    ]
    if moved:
        shown = "" if change is None else f"{signed(change)}{sign}"
        cells.append(html("<td{}>{}</td>", NUMERIC, number(line.get("before"))))
        cells.append(html('<td class="rk-number {}" style="text-align:right">{}</td>', tone, shown))
    details = f": {_short(line['details'], 160)}" if line.get("details") else ""
    bad = "rk-bad" if line["outcome"] == "failed" else ""
    cells.append(html('<td class="{}">{}</td>', bad, marks[line["outcome"]] + details))
    return html("<tr{}>{}</tr>", state, join(cells))


def _summary(lines: Sequence[Line], moved: bool) -> Html:
    rewards = [line["reward"] for line in lines if not missing(line["reward"])]
    mean = sum(rewards) / len(rewards) if rewards else None
    words = [f"{len(lines)} answers, mean reward {number(mean)}"]
    failed = sum(line["outcome"] == "failed" for line in lines)
    if failed:
        words.append(f"{failed} failed, left out of the mean")
    if moved:
        changes = [change for line in lines if (change := _change(line)) is not None]
        up, down = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
        words.append(
            f"compared with the previous grader: {up} up, {down} down, "
            f"{len(changes) - up - down} same"
        )
    return html('<p class="rk-count" role="status">{}</p>', "; ".join(words))


def _change(line: Line) -> float | None:
    before, after = line.get("before"), line["reward"]
    if before is None or after is None or missing(before) or missing(after):
        return None
    change = float(after - before)
    return 0.0 if abs(change) < SAME else change


def _steps(
    spec: Mapping[str, Any], grade: Mapping[str, Any], rendered: Sequence[Mapping[str, Any]]
) -> Html:
    parts = graders.parts(spec)
    rows = []
    for key, part in parts.items():
        reward = grade["sub_rewards"].get(key) if key else grade["reward"]
        seconds = grade["sub_seconds"].get(key) if key else grade["seconds"]
        filled = [each for each in rendered if each["key"] == key]
        compared = join(_filled(each) for each in filled) or text(spec_type(part).gets)
        rows.append(
            html(
                '<tr><th scope="row">{}<br><small>{}</small></th><td>{}</td><td{}>{}</td>'
                "<td{}>{}</td></tr>",
                key or part["name"],
                _kind(part),
                compared,
                NUMERIC,
                number(reward),
                NUMERIC,
                _time(seconds),
            )
        )
    return html(
        '<div class="rk-scroll" tabindex="0"><table><thead><tr><th scope="col">grader</th>'
        '<th scope="col">what it compared</th><th scope="col"{}>reward</th>'
        '<th scope="col"{}>time</th></tr></thead><tbody>{}</tbody></table></div>',
        NUMERIC,
        NUMERIC,
        join(rows),
    )


def _kind(part: Mapping[str, Any]) -> str:
    how = part.get("operation") or part.get("evaluation_metric") or part.get("model")
    return f"{part['type']}, {how}" if how else str(part["type"])


def _filled(each: Mapping[str, Any]) -> Html:
    shown = (
        html('<span class="rk-bad">✗ {}</span>', each["problem"])
        if each["text"] is None
        else disclosure(each["text"] or "(empty)", 300)
    )
    return html(
        '<div class="rk-message"><span class="rk-role" title="{}">{}</span>{}</div>',
        each["template"],
        each["field"],
        shown,
    )


def _judged(judged: Mapping[str, Any]) -> Html:
    """What judges said besides their numbers."""
    lines = [line for key, verdict in judged.items() for line in judged_lines(verdict, key)]
    items = html_each("<li>{}</li>", lines)
    if not items:
        return Html()
    return html('<h4>What the judge said</h4><ul class="rk-plain">{}</ul>', items)


def _formula(spec: Mapping[str, Any], grade: Mapping[str, Any]) -> Html:
    """The formula, as written and with the rewards filled in."""
    if spec["type"] != "multi":
        return Html()
    formula, subs = spec["calculate_output"], grade["sub_rewards"]

    def value(found: re.Match[str]) -> str:
        return number(subs[found[0]]) if found[0] in subs else found[0]

    filled = re.sub(r"[^\W\d]\w*", value, formula)
    result = "no reward" if grade["outcome"] == "failed" else number(grade["reward"])
    return html(
        '<h4>Formula</h4><p><code>{}</code><br><code class="rk-filled">{}</code></p>',
        formula,
        f"not scorable: {result}, the floor reward"
        if grade["outcome"] == "unscorable"
        else f"{filled} = {result}",
    )


def _errors(
    errors: Mapping[str, Any], spec: Mapping[str, Any], sub_errors: Mapping[str, Mapping[str, Any]]
) -> Html:
    if not errors:
        return Html()
    found = sub_errors or {"": errors}
    return join(_error(key, own, spec) for key, own in found.items())


def _error(key: str, errors: Mapping[str, Any], spec: Mapping[str, Any]) -> Html:
    flags = ", ".join(flag.replace("_", " ") for flag, value in errors.items() if value is True)
    details = "\n".join(value for value in errors.values() if isinstance(value, str) and value)
    part = spec.get("graders", {}).get(key) or spec
    frames = _FRAME.findall(details)
    source = _numbered(part["source"], int(frames[-1])) if frames and "source" in part else Html()
    name = f"{key}: " if key else ""
    return html(
        '<div class="rk-alert" role="alert"><strong>! {}{}</strong>{}<pre>{}</pre></div>',
        name,
        flags,
        source,
        details,
    )


def _plain(lines: Sequence[Line], keys: Sequence[str]) -> str:
    heads = ["row", *keys, "reward", "outcome", "answer"]
    widths = [5, *(max(9, len(key)) for key in keys), 8, 11, 0]
    rows = [heads]
    for line in lines:
        subs = [number(line.get(f"reward/{key}")) for key in keys]
        answer = _short(line["answer"], 60)
        rows.append([str(line["row"] + 1), *subs, number(line["reward"]), line["outcome"], answer])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _short(words: str | None, limit: int = 90) -> str:
    return cut("(no answer)" if words is None else " ".join(words.split()), limit)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def _share(value: Any) -> str | None:
    return None if missing(value) else f"{value:.0%} of rows"


def _count(value: Any) -> int | None:
    """A whole number, although a column with gaps holds floats."""
    return None if missing(value) else int(value)
