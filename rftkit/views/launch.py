"""Before a job: the checklist, what `auto` means, the estimate, and the request as code.

`rftkit.jobs` computes all of it; this module shows it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rftkit.jobs.estimate import Estimate
from rftkit.jobs.preflight import Check
from rftkit.jobs.progress import duration
from rftkit.views.listing import table
from rftkit.views.markup import Html, html, html_each, join, note, number, wrap
from rftkit.wording import counted

__all__ = ["checklist", "client_code", "estimated", "settings"]

MARKS = {
    "ok": ("✓ ok", "rk-good"),
    "warning": ("! warning", "rk-warn"),
    "error": ("✗ error", "rk-bad"),
    "not checked": ("? not checked", ""),
}
SETTINGS = {
    "name": "hyperparameter",
    "given": "as given",
    "used": "as used",
    "why": "what auto means",
}
USED_AS = {
    "learning_rate_multiplier": "learning_rate",
    "compute_multiplier": "completions_per_prompt",
}
"""Hyperparameters that a plan states under another name."""


def checklist(checks: Sequence[Check], overridden: Collection[str] = ()) -> Html:
    """Each check with its status and its result; the details are folded."""
    rows = join(_check_row(check, check.name in overridden) for check in checks)
    plain = "\n".join(
        f"{check}{'  (overridden)' if check.name in overridden else ''}" for check in checks
    )
    head = html_each('<th scope="col">{}</th>', ("check", "status", "result"))
    return wrap(
        html(
            '<div class="rk-scroll" tabindex="0"><table class="rk-checklist"><thead>'
            "<tr>{}</tr></thead><tbody>{}</tbody></table></div>",
            head,
            rows,
        ),
        plain=plain,
    )


def settings(given: Mapping[str, Any], plan: Mapping[str, Any] | None) -> Html:
    """Every hyperparameter: as given, as used, and what auto means there.

    Args:
        given: of the request; what is missing is "auto".
        plan: from `rftkit.jobs.plan`; None when the service does not report one.
    """
    if plan is None:
        return note(
            "This service does not report what `auto` means. It decides when the job starts."
        )
    used, reasons, ignored = plan["hyperparameters"], plan["reasons"], plan["ignored"]
    rows = []
    for name, why in reasons.items():
        value = given.get(name, "auto")
        rows.append(
            {
                "name": name,
                "given": _short(value),
                "used": _used(name, used),
                "why": ignored.get(name) or why,
            }
        )
    interval = counted(used["eval_interval"], "step")
    head = f"{counted(used['total_steps'], 'step')}, a validation every {interval}"
    return table(rows, SETTINGS, caption=head, noun="hyperparameter")


def estimated(estimate: Estimate, cost: tuple[float, float] = (0.0, 0.0)) -> Html:
    """Time, memory, judge tokens and cost of the whole job, and what the estimate is based on."""
    low, high = estimate.seconds
    facts = [("Time", _span(duration(low), duration(high)))]
    facts.append(("Process memory", f"{estimate.host_memory_bytes / 2**30:.1f} GiB"))
    if estimate.device_memory_bytes is not None:
        facts.append(("GPU memory", f"{estimate.device_memory_bytes / 2**30:.1f} GiB"))
    for model, (prompt, said) in estimate.judge_tokens.items():
        facts.append((f"Tokens of {model}", f"{prompt:,.0f} in, {said:,.0f} out"))
    facts += _episode_facts(estimate)
    if cost[1] > 0:
        facts.append(("Cost", _span(f"${cost[0]:,.2f}", f"${cost[1]:,.2f}")))
    tiles = join(
        html('<div class="rk-tile"><span>{}</span><b>{}</b></div>', name, value)
        for name, value in facts
    )
    shorter, longer = estimate.step_seconds
    basis = (
        f"Based on two steps of {number(shorter, 2)} and {number(longer, 2)} s. The job has "
        f"{counted(estimate.total_steps, 'step')} and {estimate.num_validations} validations of "
        f"{number(estimate.validation_seconds, 2)} s each. The length of the answers and other "
        "load on the machine change the result."
    )
    plain = "\n".join([*(f"{name}: {value}" for name, value in facts), basis])
    return wrap(
        html('<div class="rk-tiles">{}</div><p class="rk-note">{}</p>', tiles, basis), plain=plain
    )


def _episode_facts(estimate: Estimate) -> list[tuple[str, str]]:
    """Further facts about a job with tools."""
    found = estimate.episodes
    if found is None:
        return []
    facts = []
    for name, calls in found.calls.items():
        each = calls.median_seconds
        seconds = "" if each is None else f", {number(each, 2)} s each"
        facts.append((f"Calls of {name}", f"{calls.num:,.0f}{seconds}"))
    length = f"{number(found.turns_mean, 1)} turns, {found.tokens_mean:,.0f} tokens"
    low, high = (number(each, 2) for each in found.waiting_seconds)
    return [*facts, ("A rollout", length), ("A step waits for tools", f"{_span(low, high)} s")]


def client_code(request: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Code that creates the same job with OpenAI's client only.

    Args:
        request: the body of the create; file ids that are not known yet may be missing.
        files: parameter -> path to upload, for those that have no id yet.
    """
    lines = ["import rftkit", "", "client = rftkit.connect()  # or openai.OpenAI()"]
    for name, path in files.items():
        lines += [
            f"{name} = client.files.create(",
            f'    file=open({path!r}, "rb"), purpose="fine-tune"',
            ").id",
        ]
    lines.append("job = client.fine_tuning.jobs.create(")
    for name, value in request.items():
        shown = name if name in files else _python(value, 4)
        lines.append(f"    {name}={shown},")
    return "\n".join([*lines, ")", "print(job.id)"])


def _check_row(check: Check, is_overridden: bool) -> Html:
    mark, tone = MARKS[check.state]
    if is_overridden and not check.is_green:
        mark += ", overridden"
    details = html_each("<li>{}</li>", check.details)
    folded = (
        html(
            '<details><summary data-lm-suppress-shortcuts="true">{} found</summary>'
            "<ul>{}</ul></details>",
            len(check.details),
            details,
        )
        if details
        else Html()
    )
    return html(
        '<tr><th scope="row">{}</th><td class="{}">{}</td><td>{}{}</td></tr>',
        check.name,
        tone,
        mark,
        check.result,
        folded,
    )


def _used(name: str, used: Mapping[str, Any]) -> str:
    stated = USED_AS.get(name, name)
    if stated not in used:
        return "–"
    extra = f" ({stated.replace('_', ' ')})" if stated != name else ""
    return f"{_short(used[stated])}{extra}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _python(value: Any, indent: int) -> str:
    """A JSON value as Python source, laid out when it is long."""
    flat = repr(value)
    if len(flat) + indent < 80 or not isinstance(value, dict | list):
        return flat
    pad, close = " " * (indent + 4), " " * indent
    if isinstance(value, dict):
        inner = [f"{pad}{k!r}: {_python(v, indent + 4)}," for k, v in value.items()]
        return "\n".join(["{", *inner, f"{close}}}"])
    inner = [f"{pad}{_python(each, indent + 4)}," for each in value]
    return "\n".join(["[", *inner, f"{close}]"])
