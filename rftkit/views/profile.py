"""Charts of a dataset's profile: lengths, labels, pass rates.

Not here: the frame (`rftkit.datasets.profile`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rftkit.views.markup import Html, note, number
from rftkit.views.plot import INK, dress, panel_axes, picture
from rftkit.wording import counted

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["profile_chart"]

MAX_LABELS = 8
BINS = 30
COLOUR = "#0a58a8"


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


def _histogram(frame: pd.DataFrame, name: str, title: str) -> tuple[Figure, str] | None:
    if name not in frame or frame[name].isna().all():
        return None
    values = frame[name].dropna().astype(float)
    figure, axes = panel_axes()
    axes.hist(values, bins=min(BINS, max(1, int(values.nunique()))), color=COLOUR)
    middle = float(values.median())
    axes.axvline(middle, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    dress(axes, title)
    axes.set_xlabel(f"dashed: median {number(middle)}", fontsize=7.5)
    said = (
        f"{title}: {counted(len(values), 'row')}, lowest {number(float(values.min()))}, "
        f"median {number(middle)}, highest {number(float(values.max()))}."
    )
    return figure, said


def _bars(frame: pd.DataFrame, name: str) -> tuple[Figure, str]:
    counts = frame[name].astype(str)[frame[name].notna()].value_counts()
    shown = counts.head(MAX_LABELS)[::-1]
    figure, axes = panel_axes()
    axes.barh([_short(value) for value in shown.index], shown.to_numpy(), color=COLOUR)
    title = name.removeprefix("item.")
    more = f", the first {MAX_LABELS} of {len(counts)}" if len(counts) > MAX_LABELS else ""
    dress(axes, f"{title}{more}")
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("rows", fontsize=7.5)
    said = ", ".join(f"{value} {count:,}" for value, count in counts.head(MAX_LABELS).items())
    return figure, f"{title}: {said}{more}."


def _labels(frame: pd.DataFrame) -> list[str]:
    """Columns with few, repeated values; the reference answer only if there are no others."""
    keys = [str(name) for name in frame if str(name).startswith("item.")]
    return [name for name in keys if _repeats(frame[name])] or [
        name for name in frame if name == "label" and _repeats(frame[name])
    ]


def _repeats(values: pd.Series[Any]) -> bool:
    known = values.dropna()
    return 1 < int(known.nunique()) <= min(50, len(known) // 2)


def _short(value: Any) -> str:
    words = str(value)
    return words if len(words) <= 16 else f"{words[:15]}…"
