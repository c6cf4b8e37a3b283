"""Charts of a dataset's profile: lengths, labels, pass rates.

Not here: the frame (`rftkit.datasets.profile`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rftkit.views.markup import Html, note, number
from rftkit.views.plot import Chart, picture
from rftkit.views.svg import Axis, Canvas, value_axis
from rftkit.wording import counted, cut

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["profile_chart"]

MAX_LABELS = 8
BINS = 30


def profile_chart(frame: pd.DataFrame) -> Html:
    """One small chart for each column of a profile."""
    drawn = [
        _histogram(frame, "tokens", "Prompt tokens"),
        _histogram(frame, "prompt_chars", "Prompt characters"),
        _histogram(frame, "answer_chars", "Reference answer characters"),
        *(_bars(frame, name) for name in _labels(frame)),
        _histogram(frame, "pass_rate", "Pass rate of sampled rows"),
        _histogram(frame, "spread", "Reward spread within a row"),
    ]
    found = [each for each in drawn if each is not None]
    if not found:
        return note("Nothing to draw. No row is usable.")
    return picture(found, f"{counted(len(frame), 'row')}. Each chart counts rows.")


def _histogram(frame: pd.DataFrame, name: str, title: str) -> Chart | None:
    import numpy as np

    if name not in frame or frame[name].isna().all():
        return None
    values = frame[name].dropna().astype(float)
    counts, edges = np.histogram(values, bins=min(BINS, max(1, int(values.nunique()))))
    middle = float(values.median())
    canvas = Canvas(
        value_axis([*map(float, edges)], label=f"dashed: median {number(middle)}"),
        value_axis([0.0, float(counts.max())]),
        is_wide=False,
    )
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        words = f"{number(float(low))} to {number(float(high))}: {counted(int(count), 'row')}"
        if count:
            canvas.bar((float(low), float(high)), (0, float(count)), words, "rk-box rk-fill0")
    canvas.rule(middle, "rk-dash1")
    said = (
        f"{title}: {counted(len(values), 'row')}, lowest {number(float(values.min()))}, "
        f"median {number(middle)}, highest {number(float(values.max()))}."
    )
    return Chart(title, canvas, said)


def _bars(frame: pd.DataFrame, name: str) -> Chart:
    """One bar for each value, below its name and count."""
    counts = frame[name].astype(str)[frame[name].notna()].value_counts()
    pairs = [(str(value), int(count)) for value, count in counts.head(MAX_LABELS).items()]
    most = float(max(count for _, count in pairs))
    canvas = Canvas(Axis(0.0, most, ()), None, is_wide=False, height=48 + 36 * len(pairs))
    slot = 1 / len(pairs)
    for at, (value, count) in enumerate(pairs):
        top = canvas.at_y(at * slot)
        canvas.word(canvas.at_x(0), top + 12, f"{cut(str(value), 32)}  {count:,}")
        words = f"{value}: {counted(count, 'row')}"
        ends = ((at + 0.5) * slot, (at + 0.85) * slot)
        canvas.bar((0.0, float(count)), ends, words, "rk-box rk-fill0")
    title = name.removeprefix("item.")
    more = f", the first {MAX_LABELS} of {len(counts)}" if len(counts) > MAX_LABELS else ""
    said = ", ".join(f"{value} {count:,}" for value, count in pairs)
    return Chart(f"{title}{more}", canvas, f"{title}: {said}{more}.")


def _labels(frame: pd.DataFrame) -> list[str]:
    """Columns with few, repeated values; the reference answer only if there are no others."""
    keys = [str(name) for name in frame if str(name).startswith("item.")]
    return [name for name in keys if _repeats(frame[name])] or [
        name for name in frame if name == "label" and _repeats(frame[name])
    ]


def _repeats(values: pd.Series[Any]) -> bool:
    known = values.dropna()
    return 1 < int(known.nunique()) <= min(50, len(known) // 2)
