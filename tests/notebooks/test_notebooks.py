"""Every notebook as it lies in git: stripped, numbered, with parameters that a form can show.

The one about trusting a reward also runs, from top to bottom, with its own platform and a scripted
judge; it is here because the files with the most tests are begun first.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from rftkit import reports
from rftkit.client import serve_status

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
STRIPPED = {"kernelspec", "language_info"}
SHOWN = (
    "padding is free",
    "people reject",
    "With it:",
    "✓ succeeded",
    "└ no-presence",  # the branch in the tree
    "· no-presence",  # its answers beside the other job's
    "position_bias",
    "order_disagreement",
)
"""By 08_trust_a_reward."""

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def test_names_say_the_order_of_the_work() -> None:
    names = [path.stem for path in NOTEBOOKS]
    assert all(re.match(r"(\d\d|report)_[a-z_]+$", name) for name in names), names


@every_notebook
def test_outputs_are_stripped(path: Path) -> None:
    for cell in code_cells(path):
        assert cell.outputs == []
        assert cell.execution_count is None
    assert set(read(path).metadata) <= STRIPPED  # no `widgets`, no `papermill`


@every_notebook
def test_it_runs_on_any_machine_and_has_lasting_ids(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell.id) for cell in notebook.cells)


@every_notebook
def test_parameters_are_typed_and_commented(path: Path) -> None:
    tagged = [c for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    lines = [line for line in tagged[0].source.splitlines() if line.strip()]
    for line in lines:
        assert re.match(r"(\w+: [\w\[\], |]+ = .+  # \w|[#\]\)} ])", line), line


@every_notebook
def test_a_workbench_is_short_and_ends_with_a_freeze(path: Path) -> None:
    cells = read(path).cells
    if path.stem.startswith("report_"):
        return
    assert len(cells) <= 16
    assert cells[0].source.startswith("# ")
    assert "freeze(" in cells[-1].source


def test_trusting_a_reward_runs_offline_with_its_scripted_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    [notebook] = [path for path in NOTEBOOKS if path.stem == "08_trust_a_reward"]
    page = reports.run(notebook, tmp_path / "trust.html", keep_notebook=True)
    executed = nbformat.read(page.with_suffix(".ipynb"), as_version=4)
    outputs = [str(output) for cell in executed.cells for output in cell.get("outputs", [])]
    for words in SHOWN:
        assert any(words in each for each in outputs), words
    [home] = tmp_path.glob("rftkit-trust-*")
    assert serve_status(home) is None  # its platform ended with its kernel
