"""The fields of JobLauncher: the settings of a job, as they are typed.

`show` fills the fields from the panel's state; what is typed is read and passed to `take`. Checks
and jobs are in the panel.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets

from rftkit.errors import InputError
from rftkit.hyperparameters import EVERY, METHODS
from rftkit.strictjson import parse_strictly
from rftkit.tools import mask_tools

__all__ = ["SPECS", "LaunchForm", "wide", "wrapping"]

State = Mapping[str, Any]

SPECS = {"grader": "Grader", "response_format": "Format", "tools": "Tools"}
"""Settings that are given as JSON, or as the path of a JSON file."""
TEXTS = {
    "train": "Train",
    "valid": "Valid",
    "suffix": "Suffix",
    "seed": "Seed",
    "metadata": "metadata",
    "max_episode_steps": "Turns",
}


class LaunchForm:
    """Fields for the settings of a job."""

    def __init__(
        self, take: Callable[[str, Any], None], guard: Callable[[Callable[[], None]], None]
    ) -> None:
        """`take` gets the name and the value of a setting, and `guard` shows the errors
        it raises.
        """
        self._take, self._guard = take, guard
        self._state: State = {}
        self.texts = {name: _text(label) for name, label in TEXTS.items()}
        # the same width as the hyperparameters
        self.texts["metadata"].style.description_width = "11rem"
        self.hyperparameters = {name: _hyperparameter(name) for name in EVERY}
        self.specs = {
            name: ipywidgets.Textarea(description=label, continuous_update=False, rows=6, **wide())
            for name, label in SPECS.items()
        }
        pickers = {name: _picker(f"{label} file") for name, label in SPECS.items()}
        for fields, read in (
            (self.texts, self._read_text),
            (self.hyperparameters, self._read_hyperparameter),
            (self.specs, self._read_spec),
            (pickers, self._read_path),
        ):
            for name, field in fields.items():
                field.observe(partial(self._on_typed, read, name, field), names="value")
        self.of_tools = ipywidgets.VBox(
            [pickers["tools"], self.specs["tools"], self.texts["max_episode_steps"]]
        )
        specs = [each for name in list(SPECS)[:2] for each in (pickers[name], self.specs[name])]
        self.more = ipywidgets.Accordion(
            [
                ipywidgets.VBox([*specs, self.of_tools]),
                ipywidgets.VBox([*self.hyperparameters.values(), self.texts["metadata"]]),
            ],
            titles=("", "Hyperparameters"),
        )
        """Settings that most jobs leave at their defaults."""

    def show(self, state: State, *, learns_from_grader: bool) -> None:
        """Fill every field; hide those that a job of this method does not have."""
        self._state = state
        shown = {**state, "metadata": " ".join(f"{k}={v}" for k, v in state["metadata"].items())}
        for name, field in self.texts.items():
            field.value = "" if shown[name] is None else str(shown[name])
        for name, field in self.hyperparameters.items():
            field.value = str(state["hyperparameters"].get(name, ""))
            field.layout.display = "" if name in METHODS[state["method"]] else "none"
        for name, area in self.specs.items():
            value = mask_tools(state["tools"]) if name == "tools" else state[name]
            area.value = json.dumps(value, indent=1, ensure_ascii=False) if value else ""
        self.of_tools.layout.display = "" if learns_from_grader else "none"
        title = "Grader, response format and tools"
        if not learns_from_grader:
            title = "Grader and response format, to measure its checkpoints (optional)"
        self.more.set_title(0, title)

    def _on_typed(
        self, read: Callable[[str, str], None], name: str, field: ipywidgets.Text, _: Any
    ) -> None:
        self._guard(lambda: read(name, field.value.strip()))

    def _read_text(self, name: str, typed: str) -> None:
        if name in ("seed", "max_episode_steps"):
            self._take(name, _number(typed, name) if typed else None)
        else:
            self._take(name, _pairs(typed) if name == "metadata" else typed)

    def _read_hyperparameter(self, name: str, typed: str) -> None:
        given = {**self._state["hyperparameters"]}
        given.pop(name, None)
        if typed not in ("", "auto"):
            given[name] = typed if name == "reasoning_effort" else _number(typed, name)
        self._take("hyperparameters", given)

    def _read_path(self, name: str, typed: str) -> None:
        if typed:
            self._take(name, typed)

    def _read_spec(self, name: str, typed: str) -> None:
        try:
            value = parse_strictly(typed) if typed else None
        except ValueError as error:
            raise InputError(f"{name} is not JSON: {error}") from None
        if name == "tools":
            if value is not None and not isinstance(value, list):
                raise InputError("tools must be a JSON list of {name, server_url, headers}")
            self._take(name, self._unmasked(value or []))
            return
        if value is not None and not isinstance(value, dict):
            raise InputError(f"{name} must be one JSON object")
        self._take(name, value or ({} if name == "grader" else None))

    def _unmasked(self, entries: list[Any]) -> list[Any]:
        """Entries with the headers that they had before the form showed them as asterisks."""
        tools = self._state["tools"]
        shown = mask_tools(tools)
        return [tools[shown.index(entry)] if entry in shown else entry for entry in entries]


def wide(description_width: str = "5rem", width: str = "100%", most: str = "46rem") -> Any:
    """A new layout for each control, because a closed panel closes its layouts."""
    layout = ipywidgets.Layout(width=width, max_width=most)
    return {"style": {"description_width": description_width}, "layout": layout}


def wrapping() -> ipywidgets.Layout:
    """The layout of a row of controls that may take several lines."""
    return ipywidgets.Layout(flex_flow="row wrap")


def _text(label: str) -> ipywidgets.Text:
    return ipywidgets.Text(description=label, continuous_update=False, **wide())


def _hyperparameter(name: str) -> ipywidgets.Text:
    return ipywidgets.Text(
        description=name.replace("_", " "),
        placeholder="auto",
        continuous_update=False,
        **wide("11rem", "20rem", "100%"),
    )


def _picker(label: str) -> ipywidgets.Combobox:
    """A field for the path of a JSON file, such as one that GraderLab saved."""
    return ipywidgets.Combobox(
        options=_json_files(),
        description=label,
        placeholder="path of a .json file, or paste JSON below",
        continuous_update=False,
        **wide(),
    )


def _json_files() -> list[str]:
    """Those of this folder and of the folders in it, where a dataset has its grader."""
    globs = ("[!.]*.json", "[!.]*/*.json")
    return [str(each) for glob in globs for each in sorted(Path().glob(glob))]


def _number(typed: str, name: str) -> int | float:
    try:
        value = float(typed)
    except ValueError:
        raise InputError(f"{name} must be a number or auto, found {typed!r}") from None
    return int(value) if value.is_integer() else value


def _pairs(typed: str) -> Mapping[str, str]:
    words = [word.partition("=") for word in typed.split()]
    for name, found, _ in words:
        if not (name and found):
            raise InputError(f"metadata is written name=value, found {name!r}")
    return {name: value for name, _, value in words}
