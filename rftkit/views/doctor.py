"""The results of the dataset check as a page: verdict, findings with their rows, learnability.

The checks themselves are elsewhere (`rftkit.datasets.check`, `preview`, `rftkit.graders.audit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rftkit.views.grading import audited
from rftkit.views.listing import table
from rftkit.views.markup import Html, heading, html, join, number, text, wrap
from rftkit.views.rows import row_in_full
from rftkit.wording import counted

if TYPE_CHECKING:
    import pandas as pd

    from rftkit.datasets import Check, FileFacts, Finding, Place, Preview
    from rftkit.graders import Audit

__all__ = ["audit_table", "check_page", "check_rows", "check_verdict", "findings", "preview_table"]

SIGNS = {"error": ("✗ error", "rk-bad"), "warning": ("! warning", "rk-warn"), "info": ("info", "")}
LISTED = 100
PREVIEW = {
    "row": "row",
    "kind": "difficulty for this model",
    "rewards": "rewards",
    "pass_rate": "pass rate",
    "interval": "95 % interval",
    "mean_reward": "mean reward",
    "spread": "spread",
}


def check_verdict(check: Check) -> Html:
    """One sentence with the verdict, and the number of rows."""
    said = _verdict(check)
    tiles = join(map(_tile, check.files))
    return wrap(
        html('<p class="rk-verdict">{}</p><div class="rk-tiles">{}</div>', said, tiles), plain=said
    )


def findings(check: Check) -> Html:
    """Every finding, worst first; errors are open."""
    anchors = _anchors(check)
    cards = join(_card(each, anchors) for each in check.findings)
    return wrap(html('<div class="rk-findings">{}</div>', cards), plain=str(check))


def check_rows(check: Check) -> Html:
    """The rows that findings name, in full; the findings link here."""
    named: dict[str, list[str]] = {}
    for each in check.findings:
        for place in each.places:
            named.setdefault(str(place), []).append(each.message)
    return join(
        html(
            '<section id="{}" tabindex="-1">{}</section>',
            anchor,
            _row(check.examples[place], place, named.get(place, [])),
        )
        for place, anchor in _anchors(check).items()
    )


def preview_table(preview: Preview) -> Html:
    """The rewards of the model, row by row; the rows with the widest spread first."""
    records = [
        {**record, "interval": _interval(record), "rewards": _rewards(row.rewards)}
        for record, row in zip(preview.records(), preview.rows, strict=True)
    ]
    records.sort(key=lambda record: -(record["spread"] or 0))
    return table(
        records,
        PREVIEW,
        caption=f"{preview.model}: {preview.completions} completions per row; passes from "
        f"{number(preview.pass_threshold)}",
    )


def audit_table(audit: Audit) -> Html:
    """What the reference answer and each cheat earn, and what to fix."""
    return audited(audit.to_frame(), audit.findings(), audit.num_rows)


def check_page(
    check: Check,
    *,
    audit: Audit | None = None,
    preview: Preview | None = None,
    charts: Html | None = None,
) -> Html:
    """The whole check with headings, for one HTML document (`markup.page`)."""
    parts = [heading("Dataset check"), check_verdict(check)]
    parts += [Html("<h2>Findings</h2>"), findings(check)]
    if preview is not None:
        parts += [Html("<h2>What the model can learn</h2>"), preview_table(preview)]
    if audit is not None:
        parts += [Html("<h2>What the grader rewards</h2>"), audit_table(audit)]
    if charts:
        parts += [Html("<h2>Profile</h2>"), charts]
    if check.examples:
        parts += [Html("<h2>Rows</h2>"), check_rows(check)]
    return join(parts, plain=str(check))


def _verdict(check: Check) -> str:
    counts = {sign: sum(each.severity == sign for each in check.findings) for sign in SIGNS}
    warnings = counted(counts["warning"], "warning")
    if counts["error"]:
        return f"A job would not run: {counted(counts['error'], 'error')}, {warnings}."
    if counts["warning"]:
        return f"A job would run. Review {warnings} first."
    return "A job would run. No errors or warnings."


def _tile(file: FileFacts) -> Html:
    tone, below = "", "all usable"
    if file.num_refused:
        tone, below = "rk-bad", f"{file.num_refused:,} of them refused"
    return html(
        '<div class="rk-tile"><span>{} rows</span><b>{:,}</b>'
        '<small class="{}">{}</small><small>{}</small></div>',
        file.role,
        file.num_rows,
        tone,
        below,
        file.name,
    )


def _anchors(check: Check) -> dict[str, str]:
    return {place: f"row-{at}" for at, place in enumerate(check.examples, 1)}


def _card(finding: Finding, anchors: Mapping[str, str]) -> Html:
    sign, tone = SIGNS[finding.severity]
    rows = counted(finding.count, "row") if finding.count else ""
    advice = html('<p class="rk-advice">→ {}</p>', finding.advice) if finding.advice else Html()
    body = advice + _values(finding.figures) + _places(finding, anchors)
    head = html(
        '<span class="rk-mark {}">{}</span><span class="rk-title">{}</span>'
        '<span class="rk-move">{}</span>',
        tone,
        sign,
        finding.message,
        rows,
    )
    if not body:
        return html('<div class="rk-card"><div class="rk-summary">{}</div></div>', head)
    is_open = " open" if finding.severity == "error" else ""
    return html(
        '<details class="rk-card"{}>'
        '<summary data-lm-suppress-shortcuts="true">{}</summary>'
        '<div class="rk-body">{}</div></details>',
        is_open,
        head,
        body,
    )


def _places(finding: Finding, anchors: Mapping[str, str]) -> Html:
    if not finding.places:
        return Html()
    said: Sequence[str] = finding.details or [str(place) for place in finding.places]
    lines = join(
        html("<li>{}</li>", _linked(place, words, anchors))
        for place, words in zip(finding.places[:LISTED], said, strict=False)
    )
    more = finding.count - len(finding.places[:LISTED])
    rest = html('<p class="rk-note">and {:,} more</p>', more) if more > 0 else Html()
    return html('<ul class="rk-places">{}</ul>{}', lines, rest)


def _linked(place: Place, words: str, anchors: Mapping[str, str]) -> Html:
    anchor, name = anchors.get(str(place)), str(place)
    if anchor is None:
        return text(words)
    link = html('<a href="#{}">{}</a>', anchor, name)
    before, found, after = words.partition(name)
    return html("{}{}{}", before, link, after) if found else html("{} {}", link, words)


def _values(figures: Mapping[str, Any]) -> Html:
    """How often each value of a key occurs, as bars with their numbers."""
    values = figures.get("values")
    if not values:
        return Html()
    total, most = sum(values.values()), max(values.values())
    lines = join(
        html(
            '<tr><th scope="row">{}</th><td class="rk-number">{:,}</td>'
            '<td class="rk-number">{:.0%}</td><td class="rk-bar">'
            '<span style="width:{:.1f}%"></span></td></tr>',
            value,
            count,
            count / total,
            100 * count / most,
        )
        for value, count in values.items()
    )
    return html('<div class="rk-scroll" tabindex="0"><table><tbody>{}</tbody></table></div>', lines)


def _row(item: Any, place: str, said: Sequence[str]) -> Html:
    if isinstance(item, str):
        return wrap(html('<h4 class="rk-place">{}</h4><pre>{}</pre>', place, item))
    return row_in_full(item, place=place, findings=said)


def _interval(record: Mapping[str, Any]) -> str:
    low, high = record["low"], record["high"]
    return "" if low is None or high is None else f"{number(low, 2)} to {number(high, 2)}"


def _rewards(rewards: Sequence[float | None]) -> str:
    return " ".join("–" if reward is None else f"{reward:.2f}" for reward in rewards)


def profile_facts(frame: pd.DataFrame) -> dict[str, str]:
    """The numbers of a profile in words, for `keyvalues`."""
    usable = frame[frame["usable"].astype(bool)]
    facts = {"rows": f"{len(frame):,}", "usable": f"{len(usable):,}"}
    if "prompt_hash" in usable:
        facts["distinct prompts"] = f"{usable['prompt_hash'].nunique():,}"
    if "tokens" in usable and usable["tokens"].notna().any():
        middle, longest = usable["tokens"].median(), usable["tokens"].max()
        facts["prompt tokens"] = f"median {middle:,.0f}, longest {longest:,.0f}"
        facts["counted by"] = str(frame.attrs.get("counted_by", ""))
    return facts
