"""Labeller: label samples by hand with verdicts or numbers, in one text field.

One key a label: `a` accepts, `r` rejects, `b` goes back, Enter skips; a number and Enter is a
reward. Each label is written to a file at once, so that closing the notebook loses nothing. The
reward is hidden until a sample is labelled, because people tend to follow it. `rftkit.evals.agree`
compares the labels with the grader.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets
from traitlets import Int, Unicode

from rftkit import views
from rftkit.errors import InputError
from rftkit.evals import Agreement, Label, Samples, agree
from rftkit.evals.labels import read_labels
from rftkit.views.conversation import prompt, readable, reference
from rftkit.views.markup import Html, html, join, note, number, wrap
from rftkit.wholefile import write_whole
from rftkit.widgets.panel import Panel

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Labeller", "read_labels"]

Place = tuple[str, str, int]
VERDICTS = {"a": 1.0, "r": 0.0}


class Labeller(Panel):
    """Label samples by hand; `panel.labels` lists the labels, `panel.agreement()` evaluates them.

    Args:
        samples: from `evals.fetch` or a similar function.
        path: JSONL file for the labels; labels in an existing file are kept.
        most: number of samples to label, spread evenly over the rewards.
        run: label of the run to draw from; default all runs.
        by: name of the person who labels.
        seed: for the random choice of samples.
        state: `place`, the number of the sample shown, from 0.
    """

    place = Int(0, min=0, help="Number of the sample shown, from 0.")
    entry = Unicode("", help="Text that was typed: a, r, b, a number, or nothing to skip.")

    def __init__(
        self,
        samples: Samples,
        path: str | Path = "labels.jsonl",
        *,
        most: int = 50,
        run: str | None = None,
        by: str = "",
        seed: int = 0,
        **state: Any,
    ) -> None:
        """Choose the samples, and start at the first one without a label."""
        self._samples, self._path, self._by = samples, Path(path), by
        self._labels = {(each.row, each.run, each.sample): each for each in read_labels(path)}
        self._places = _chosen(samples, run, most, seed)
        if not self._places:
            raise InputError("there is no graded answer to label in these samples")
        open_places = [at for at, each in enumerate(self._places) if each not in self._labels]
        first = open_places[0] if open_places else len(self._places)
        super().__init__(**{"place": first, **state})

    @property
    def labels(self) -> list[Label]:
        """All labels, in the order in which they were given."""
        return list(self._labels.values())

    def agreement(self, threshold: float | None = None) -> Agreement:
        """The grader compared with the labels; see `evals.agree`."""
        return agree(self._samples, self.labels, threshold=threshold)

    def data(self) -> pd.DataFrame:
        """One row per label."""
        import pandas as pd

        names = ("row", "run", "sample", "value", "kind", "by")
        return pd.DataFrame([asdict(each) for each in self.labels], columns=list(names))

    def submit(self, entry: str) -> None:
        """Apply one entry of the text field, and show the next sample.

        Raises:
            InputError: it is none of a, r, b, a number, or nothing; or it mixes verdicts and
                numbers.
        """
        word = entry.strip().lower()
        if word == "b":
            self.place = max(0, self.place - 1)
            return
        if self.place >= len(self._places):
            raise InputError("all samples are labelled; type b to go back")
        if word:
            self._keep(self._label(word))
        self.place += 1

    def to_html(self, *, max_bytes: int = 300_000) -> Html:
        """The next sample and the progress; at the end, the agreement."""
        progress = note(f"{len(self._labels):,} labelled, {len(self._places):,} chosen.")
        if self.place < len(self._places):
            return join([progress, self._sample()], plain=progress.plain)
        if not self._labels:
            return progress
        return join([progress, views.agreement(self.agreement(), self._samples)])

    # the sample

    def _line(self) -> Any:
        row, run, sample = self._places[self.place]
        frame = self._samples.frame
        found = frame[(frame["row"] == row) & (frame["run"] == run) & (frame["sample"] == sample)]
        return found.iloc[0]

    def _sample(self) -> Html:
        place, line = self._places[self.place], self._line()
        item = dict(self._samples.items.get(place[0]) or {})
        known = self._labels.get(place)
        feedback = Html()
        if known is not None:
            feedback = html(
                '<p class="rk-note">Your label: {}. The grader gave {}.</p>',
                _word(known),
                number(line["reward"], 2),
            )
        return wrap(
            html(
                '<h4>Sample {} of {}</h4>{}{}<h4>The answer</h4><div class="rk-side">'
                '<span class="rk-text">{}</span></div>{}',
                self.place + 1,
                len(self._places),
                prompt(item.get("messages") or []),
                reference(item),
                readable(line["answer"]),
                feedback,
            )
        )

    def _label(self, word: str) -> Label:
        row, run, sample = self._places[self.place]
        value = VERDICTS.get(word)
        kind = "verdict" if value is not None else "number"
        if value is None:
            try:
                value = float(word.replace(",", "."))
            except ValueError:
                raise InputError(
                    f"type a to accept, r to reject, a number, b to go back, or nothing to skip; "
                    f"found {word!r}"
                ) from None
        kinds = {each.kind for each in self.labels}
        if kinds and kind not in kinds:
            raise InputError(
                f"these labels are {kinds.pop()}s, and {word!r} is a {kind}; use one kind, or "
                "another file"
            )
        return Label(
            row, run, sample, value, "verdict" if kind == "verdict" else "number", self._by
        )

    def _keep(self, label: Label) -> None:
        self._labels[label.row, label.run, label.sample] = label
        lines = "".join(json.dumps(asdict(each)) + "\n" for each in self.labels)
        write_whole(self._path, lines)

    # widgets

    def _build(self) -> Sequence[ipywidgets.Widget]:
        self._view = self._html()
        self._field = ipywidgets.Text(
            placeholder="a: accept · r: reject · b: back · Enter: skip · or a number and Enter",
            continuous_update=False,
            layout=ipywidgets.Layout(width="30rem", max_width="100%"),
        )
        self._field.observe(lambda change: self._guard(lambda: self._enter(change["new"])), "value")
        self._field.add_class("rk-entry")
        self._skip = self._button(
            "Skip", lambda: self.submit(""), "Leave this sample without a label"
        )
        row = ipywidgets.Layout(flex_flow="row wrap")
        return [self._view, ipywidgets.HBox([self._field, self._skip], layout=row)]

    def _draw(self) -> None:
        self._view.value = join([self.to_html(), Html('<span data-rk-keys="a r b Enter"></span>')])

    def _act_key(self, key: str) -> None:
        """Handle a key that is pressed anywhere in the panel, except in a field with text."""
        self.submit("" if key == "Enter" else key)
        self._draw()

    def _enter(self, typed: str) -> None:
        """Take what was typed: a number, or a letter that was pasted."""
        if typed:
            self._field.value = ""
            self.submit(typed)
            self._draw()


def _chosen(samples: Samples, run: str | None, most: int, seed: int) -> list[Place]:
    """Samples evenly over the rewards, in random order."""
    import numpy as np

    frame = samples.frame
    frame = frame[frame["reward"].notna() & frame["answer"].notna()]
    if run is not None:
        frame = frame[frame["run"] == samples.run(run).label]
    rng = np.random.default_rng(seed)
    mixed = frame.iloc[rng.permutation(len(frame))].sort_values("reward", kind="stable")
    count = min(most, len(mixed))
    even = np.linspace(0, max(0, len(mixed) - 1), count).round().astype(int)
    picked = mixed.iloc[np.unique(even)]
    picked = picked.iloc[rng.permutation(len(picked))]
    columns = [picked[name].tolist() for name in ("row", "run", "sample")]
    return list(zip(*columns, strict=True))


def _word(label: Label) -> str:
    if label.kind == "number":
        return f"{label.value:g}"
    return "accept" if label.value else "reject"
