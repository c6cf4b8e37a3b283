"""Labeller: give verdicts or numbers to samples by hand, one text field, Enter moves on.

`a` accepts, `r` rejects, a number is a reward, `b` goes back, empty skips. Labels are written to a
file at once, so that closing the notebook loses nothing. Not here: what the labels say of the
grader (`rftkit.evals.agree`). The reward is hidden until a sample is labelled: people follow it.
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
from rftkit.rows import parse_object
from rftkit.strictjson import lines_of, read_text
from rftkit.views.conversation import prompt, readable, reference
from rftkit.views.markup import Html, join, note, number, text, wrap
from rftkit.wholefile import write_whole
from rftkit.widgets.panel import Panel

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Labeller", "read_labels"]

Place = tuple[str, str, int]
VERDICTS = {"a": 1.0, "r": 0.0}


class Labeller(Panel):
    """Label samples by hand; `panel.labels` are the labels, `panel.agreement()` what they say.

    Args:
        samples: from `evals.fetch` and its like.
        path: JSONL file that keeps the labels; one that is there is gone on with.
        most: how many samples are put forward, evenly over the rewards.
        run: label of the run to draw from; default all runs.
        by: who labels.
        seed: of the choice.
        state: `place`, the number of the sample shown, from 0.
    """

    place = Int(0, min=0, help="Number of the sample shown, from 0.")
    entry = Unicode("", help="What is typed: a, r, b, a number, or nothing to skip.")

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
        """Choose the samples; those labelled before come first."""
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
        """What was labelled, in order of labelling."""
        return list(self._labels.values())

    def agreement(self, threshold: float | None = None) -> Agreement:
        """The grader held against the labels; see `evals.agree`."""
        return agree(self._samples, self.labels, threshold=threshold)

    def data(self) -> pd.DataFrame:
        """One row per label."""
        import pandas as pd

        names = ("row", "run", "sample", "value", "kind", "by")
        return pd.DataFrame([asdict(each) for each in self.labels], columns=list(names))

    def say(self, entry: str) -> None:
        """What Enter does with the text field.

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
        """The sample that is next, and how far it is; at the end what the labels say."""
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
        said = ""
        if known is not None:
            said = (
                f'<p class="rk-note">You said {text(_word(known))}; '
                f"the grader gave {number(line['reward'], 2)}.</p>"
            )
        return wrap(
            f"<h4>Sample {self.place + 1} of {len(self._places)}</h4>"
            f"{prompt(item.get('messages') or [])}{reference(item)}<h4>The answer</h4>"
            f'<div class="rk-side"><span class="rk-text">{text(readable(line["answer"]))}</span>'
            f"</div>{said}"
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
            placeholder="a accept · r reject · a number · b back · nothing skips; then Enter",
            continuous_update=False,
            layout=ipywidgets.Layout(width="30rem"),
        )
        self._field.observe(lambda change: self._guard(lambda: self._enter(change["new"])), "value")
        self._skip = self._button("Skip", lambda: self.say(""), "Leave this sample without a label")
        return [self._view, ipywidgets.HBox([self._field, self._skip])]

    def _draw(self) -> None:
        self._view.value = self.to_html()

    def _enter(self, typed: str) -> None:
        """Enter with nothing typed changes nothing, so it cannot be seen: that is what Skip is."""
        if typed:
            self._field.value = ""
            self.say(typed)
            self._draw()


def read_labels(path: str | Path) -> list[Label]:
    """Labels of a file; none if there is no such file.

    Raises:
        InputError: a line is no label.
    """
    file, found = Path(path), []
    for number_, line in lines_of(read_text(file)) if file.is_file() else ():
        try:
            found.append(Label(**parse_object(line, line=number_, path=path)))
        except TypeError as error:
            raise InputError(f"{path}:{number_}: not a label: {error}") from error
    return found


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
