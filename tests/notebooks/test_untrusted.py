"""A notebook that a colleague sent: JupyterLab trusts none of its outputs until somebody runs it."""

from __future__ import annotations

from typing import Any

import nbformat
import pytest
from browser import chromium  # noqa: F401  a fixture
from lab_browser import Lab, lab  # noqa: F401  a fixture
from sample_job import events

from rftkit import views

pytestmark = pytest.mark.slow


def test_charts_are_pictures_and_no_words_are_spilled(
    lab: Lab,  # noqa: F811
    chromium: Any,  # noqa: F811
) -> None:
    bundle = views.reward_chart(events())._repr_mimebundle_()
    shown = nbformat.v4.new_output("display_data", data=bundle)
    cell = nbformat.v4.new_code_cell("chart", outputs=[shown])
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    sent = nbformat.v4.new_notebook(cells=[cell], metadata=kernel)
    nbformat.write(sent, lab.folder / "sent.ipynb")

    with lab.open(chromium, "sent.ipynb", width=1280) as notebook:
        output = notebook.cell(0)
        output.locator("img.rk-still").first.wait_for()
        widths = output.locator("img.rk-still").evaluate_all("all => all.map(i => i.naturalWidth)")
        notebook.shot("untrusted", output)

        assert widths
        assert all(width > 0 for width in widths)
        assert output.locator(".rk-svg").count() == 0
        assert "train, step 1" not in output.inner_text()  # what a point says

        notebook.page.evaluate("() => { jupyterapp.commands.execute('notebook:trust'); }")
        notebook.page.get_by_role("button", name="Trust", exact=True).click()
        output.locator(".rk-svg .rk-pt").first.wait_for()
