"""A job while it runs: its status, and the newest training completions, by group.

Its curves are in `charts`. A view cannot know that nobody refreshes it any more. So `job_status`
states when the service was last polled, and the CSS class `rk-expires` shows a warning when the
markup has not been replaced for some seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rftkit.diagnosis import Finding
from rftkit.views.answers import grade_notes, reward_of
from rftkit.views.conversation import prompt, readable, reference, titles
from rftkit.views.facts import moment
from rftkit.views.headline import tile
from rftkit.views.listing import disclosure, listing
from rftkit.views.markup import Html, html, join, note, number, signed, text, wrap
from rftkit.views.signal import finding_list
from rftkit.views.steps import learned_rows
from rftkit.wording import counted

__all__ = ["job_status", "rollouts"]

Json = dict[str, Any]

SIGNS = {
    "validating_files": "… checking the files",
    "queued": "… waiting for the worker",
    "running": "▶ running",
    "pausing": "‖ pausing after this step",
    "paused": "‖ paused",
    "succeeded": "✓ succeeded",
    "failed": "✗ failed",
    "cancelled": "✗ cancelled",
}
LOSS_LABELS = {"train_loss": "Loss", "full_valid_loss": "Validation loss"}
"""Labels of the losses of supervised and dpo jobs."""
TONES = {"succeeded": "rk-good", "failed": "rk-bad", "cancelled": "rk-bad", "paused": "rk-warn"}


def job_status(
    job: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    *,
    error: str | None = None,
    polled_at: float | None = None,
    stale: str = "",
    expires_after: float | None = None,
    unread: bool = False,
    findings: Sequence[Finding] = (),
    waits: str = "",
) -> Html:
    """Status, step, time and main rewards of a job, and the age of this information.

    Args:
        job: as on the wire.
        steps: one mapping per step, sorted, with the names of `rftkit.jobs.step_frame`.
        error: why it failed.
        polled_at: unix seconds of the last successful poll; None leaves it out.
        stale: why this may be out of date; empty when it is current.
        expires_after: seconds after which markup that was not replaced shows a warning.
        unread: whether older events are still loading.
        findings: what is wrong at the newest step (`rftkit.diagnosis`).
        waits: what a job in the queue waits for (`rftkit.jobs.waits_for`).
    """
    status = str(job["status"])
    is_waiting = bool(waits) and status in ("validating_files", "queued")
    sign = f"… {waits}" if is_waiting else SIGNS.get(status, status)
    step, total = (steps[-1]["step"], steps[-1].get("total_steps")) if steps else (0, None)
    words = [html('<strong class="{}">{}</strong>', TONES.get(status, ""), sign)]
    if total:
        words.append(
            html(
                '<progress max="{:g}" value="{}" aria-label="steps"></progress> step {:,} of '
                "{:,.0f}",
                total,
                step,
                step,
                total,
            )
        )
    words += map(text, _times(job, polled_at))
    lines = [html("<p>{}</p>", Html(" · ").join(words))]
    if error:
        lines.append(html('<p class="rk-bad">! {}</p>', error))
    lines.append(html('<div class="rk-tiles">{}</div>', join(_tiles(steps))) if steps else Html())
    if findings:
        lines.append(finding_list(findings))
    lines.append(html('<p class="rk-note">{}</p>', _age(polled_at, unread)))
    if stale:
        lines.append(html('<p class="rk-warn" role="status">! {}</p>', stale))
    elif expires_after:
        lines.append(
            html(
                '<p class="rk-expires rk-warn" style="animation-delay: {:g}s">! No update for '
                "{:g} seconds. The kernel is busy or gone, so this may be out of date. The job "
                "is not affected. Run the cell again to refresh.</p>",
                expires_after,
                expires_after,
            )
        )
    plain = [f"{job['id']}  {sign}" + (f"  step {step:,} of {total:,.0f}" if total else "")]
    plain += [f"error: {error}"] if error else []
    plain += [_rewards(steps)] if steps else []
    plain += [f"! {each}" for each in findings]
    return wrap(join(lines), "rk-standing", "\n".join(plain))


def rollouts(found: Mapping[str, Any] | None, *, page: int = 8, max_bytes: int = 300_000) -> Html:
    """The completions of one step, a card per group, each with its rewards from high to low.

    Args:
        found: from `rftkit.jobs.rollouts`; None when the service does not return any.
        page: groups on one page; without scripts the others are not reachable.
        max_bytes: of markup.
    """
    if found is None:
        return note(
            "This service does not return training completions. Its validation answers are "
            "in the job's eval runs."
        )
    groups: list[Json] = found["groups"]
    if not groups:
        return note("No training step is complete yet.")
    if not any(group["rollouts"] for group in groups):
        said = f"Step {found['step']} learned from the answers of {counted(len(groups), 'row')}."
        return join([note(said), wrap(learned_rows(groups))], plain=said)
    items = [group["item"] or {"messages": [{"content": "(file deleted)"}]} for group in groups]
    cards = [
        _group(group.get("line") or index, name, group)
        for index, (name, group) in enumerate(zip(titles(items), groups, strict=True), 1)
    ]
    listed = listing(
        cards,
        lambda body: html('<div class="rk-items">{}</div>', body),
        noun="group",
        page=page,
        max_bytes=max_bytes,
        sorts=[("-spread", "widest spread first"), ("mean", "lowest mean first")],
    )
    num = sum(len(group["rollouts"]) for group in groups)
    flat = [group for group in groups if not _spread(_rewards_of(group))]
    guided = sum(bool(group.get("guided")) for group in flat)
    what_follows = "so that there is no signal"
    if guided:
        have = "has" if guided == 1 else "have"
        what_follows = f"and {guided} of these {have} a reference answer to learn from"
    said = (
        f"Step {found['step']}: {counted(num, 'completion')} in {counted(len(groups), 'group')}; "
        f"in {len(flat)} all rewards are equal, {what_follows}."
    )
    return join([note(said), listed], plain=said)


def _tiles(steps: Sequence[Mapping[str, Any]]) -> list[Html]:
    """Rewards first, then losses, then signs of trouble."""
    now = steps[-1]
    tiles = _validation_tiles([each for each in steps if _is_known(each.get("valid_reward_mean"))])
    trained = [each for each in steps if _is_known(each.get("train_reward_mean"))]
    if trained:
        last = trained[-1]
        below = "different rows at each step"
        if last.get("is_relative"):
            below = "relative: says nothing across steps"
        tiles.append(tile(f"Train, step {last['step']}", last["train_reward_mean"], below))
    for name, label in LOSS_LABELS.items():
        known = [each for each in steps if _is_known(each.get(name))]
        if known:
            first, last = known[0], known[-1]
            below = f"from {number(first[name], 2)} at step {first['step']}"
            tiles.append(tile(f"{label}, step {last['step']}", number(last[name], 2), below))
    if _is_known(flat := now.get("no_signal_groups")):
        tiles.append(tile("Groups without signal", f"{flat:.0%}", f"at step {now['step']}"))
    failed = [each["failed_grades"] for each in steps if _is_known(each.get("failed_grades"))]
    if failed:
        tiles.append(tile("Failed grades", f"{sum(failed):,.0f}", "so far; not in the means"))
    if _is_known(seconds := now.get("step_seconds")):
        tiles.append(tile("Seconds per step", number(seconds, 1), "last step"))
    return tiles


def _validation_tiles(valid: Sequence[Mapping[str, Any]]) -> list[Html]:
    if not valid:
        return []
    first, last = valid[0], valid[-1]
    against = ", against an anchor" if last.get("is_relative") else ""
    best = max(valid, key=lambda each: each["valid_reward_mean"])
    start = first["valid_reward_mean"]
    is_baseline = last is first and not first["step"]
    below = "before training" if is_baseline else f"from {number(start, 2)} at step {first['step']}"
    below = ("the first one" if last is first and not is_baseline else below) + against
    begun = None if last is first else start
    tiles = [tile(f"Validation, step {last['step']}", last["valid_reward_mean"], below, begun)]
    if best["valid_reward_mean"] > last["valid_reward_mean"]:
        label = f"Validation, step {best['step']}"
        tiles.append(tile(label, best["valid_reward_mean"], "best", begun))
    return tiles


def _rewards(steps: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    named = {"train_reward_mean": "train", "valid_reward_mean": "validation"}
    named |= {name: label.lower() for name, label in LOSS_LABELS.items()}
    for name, label in named.items():
        known = [each for each in steps if _is_known(each.get(name))]
        if known:
            parts.append(f"{label} {number(known[-1][name])} at step {known[-1]['step']}")
            if len(known) > 1:
                parts[-1] += f" ({number(known[0][name])} at step {known[0]['step']})"
    return ", ".join(parts)


def _times(job: Mapping[str, Any], polled_at: float | None) -> list[str]:
    ended = job.get("finished_at")
    now = polled_at or time.time()
    words = [f"{_duration((ended or now) - job['created_at'])} since creation"]
    if ended:
        words = [f"took {_duration(ended - job['created_at'])}"]
    elif job.get("estimated_finish") and job["status"] == "running":
        words.append(f"about {_duration(max(0.0, job['estimated_finish'] - now))} left")
    return words


def _age(polled_at: float | None, unread: bool) -> str:
    words = f"As of {moment(polled_at)}." if polled_at else ""
    return words + (" Older steps are still loading." if unread else "")


def _duration(seconds: float) -> str:
    from rftkit.jobs.progress import duration

    return duration(seconds)


def _group(index: int, title: str, group: Json) -> Html:
    rewards = _rewards_of(group)
    known = [reward for reward in rewards if reward is not None]
    mean = sum(known) / len(known) if known else None
    spread = _spread(rewards)
    failed = len(rewards) - len(known)
    kind = "with signal" if spread else "flat"
    mark = f"spread {number(spread, 2)}"
    if not spread:
        mark = "= flat, guided by its reference" if group.get("guided") else "= flat, no signal"
    if failed:
        mark = f"! {failed} failed; {mark}"
    keys = html(
        ' data-spread="{:.6f}" data-mean="{}"', spread, "" if mean is None else f"{mean:.6f}"
    )
    ordered = sorted(group["rollouts"], key=lambda each: _order(reward_of(each)), reverse=True)
    item = group["item"]
    context = prompt(item["messages"]) + reference(item) if item else Html()
    return html(
        '<details class="rk-card" data-group="{}"{}>'
        '<summary data-lm-suppress-shortcuts="true"><span>{}</span>'
        '<span class="rk-title">{}</span><span class="rk-move">mean {}</span>'
        '<span class="rk-mark {}">{}</span></summary><div class="rk-body">{}'
        '<h4>Completions, best first</h4><div class="rk-sides">{}</div>{}</div></details>',
        kind,
        keys,
        index,
        title,
        number(mean, 2),
        "rk-warn" if failed else "",
        mark,
        context,
        join(_rollout(each, mean) for each in ordered),
        _guides(group.get("guided") or ()),
    )


def _guides(given: Sequence[Json]) -> Html:
    """The reference answers that the update learned from as well."""
    if not given:
        return Html()
    return html(
        "<h4>Its reference answer, which the model learned from too (not in the mean)</h4>"
        '<div class="rk-sides">{}</div>',
        join(_rollout(each, None) for each in given),
    )


def _rollout(rollout: Json, mean: float | None) -> Html:
    reward = reward_of(rollout)
    shown = "not graded" if reward is None else f"reward {number(reward, 2)}"
    if reward is not None and mean is not None:
        shown += f" ({signed(reward - mean, 2)})"
    cut = ", cut off" if rollout["stop_reason"] == "length" else ""
    return html(
        '<div class="rk-side"><div class="rk-who"><span>{}</span><span>{}{}</span></div>{}{}</div>',
        shown,
        counted(rollout["tokens"], "token"),
        cut,
        grade_notes(rollout["grade"]),
        _said(rollout),
    )


def _said(rollout: Json) -> Html:
    """The answer; of an episode everything after the prompt, and what its calls took."""
    if not rollout.get("messages"):
        return disclosure(readable(rollout["text"]), 600)
    calls = rollout["calls"]
    words = [counted(rollout["turns"], "turn"), counted(len(calls), "call")]
    if errors := sum(each["kind"] == "error" for each in calls):
        words.append(counted(errors, "error"))
    if calls:
        slowest = max(each["seconds"] for each in calls)
        words.append(f"slowest call {number(slowest, 2)} s")
    broken = [
        html('<p class="rk-mark rk-warn">! the tool {} failed: {}</p>', each["name"], each["text"])
        for each in calls
        if each["kind"] == "failed"
    ]
    return html(
        '<p class="rk-note">{}</p>{}{}',
        ", ".join(words),
        html("").join(broken),
        prompt(rollout["messages"]),
    )


def _rewards_of(group: Json) -> list[float | None]:
    return [reward_of(each) for each in group["rollouts"]]


def _spread(rewards: Sequence[float | None]) -> float:
    known = [reward for reward in rewards if reward is not None]
    return max(known) - min(known) if len(known) > 1 else 0.0


def _order(reward: float | None) -> float:
    return float("-inf") if reward is None else reward


def _is_known(value: Any) -> bool:
    return value is not None and value == value  # NaN is unlike itself
