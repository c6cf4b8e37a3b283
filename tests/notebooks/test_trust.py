"""The notebook about trusting a reward, from top to bottom: its own platform, a scripted judge."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from rftkit import reports

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "08_trust_a_reward.ipynb"
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


def test_it_runs_offline_with_its_scripted_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    page = reports.run(NOTEBOOK, tmp_path / "trust.html", keep_notebook=True)
    executed = nbformat.read(page.with_suffix(".ipynb"), as_version=4)
    outputs = [str(output) for cell in executed.cells for output in cell.get("outputs", [])]
    for words in SHOWN:
        assert any(words in each for each in outputs), words
