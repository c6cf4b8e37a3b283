"""Keys pressed in a panel, in a browser without JupyterLab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sample_comparison
from browser import chromium, opened

from rftkit.widgets import Labeller
from rftkit.widgets.graderform import GraderForm
from rftkit.widgets.panel import KEYS

__all__ = ["chromium"]


def test_labels_in_a_browser(tmp_path: Path, chromium: Any) -> None:
    """Keys act from any control, a digit goes to the field, and none reaches JupyterLab.

    A text field of ipywidgets stops its keys on their way up.
    """
    panel = Labeller(sample_comparison.samples(), tmp_path / "labels.jsonl", most=5)
    panel.widget()
    page = tmp_path / "page.html"
    page.write_text(
        f"""<!doctype html><title>t</title><link rel="icon" href="data:,"><div class="rk-panel">
        <div class="rk-acts"><input></div><div>{KEYS}</div><div>{panel._view.value}</div>
        <div class="rk-entry"><input id="field" onkeydown="event.stopPropagation()"></div>
        <button id="skip">Skip</button></div>"""
    )
    with opened(chromium, page) as tab:
        tab.evaluate(
            """() => { window.acts = [];
            document.querySelector('.rk-acts input').addEventListener('change',
              e => acts.push(e.target.value.split(' ').slice(0, 2).join(' '))); }"""
        )
        tab.locator("#skip").focus()
        tab.keyboard.press("r")
        assert tab.evaluate("acts") == ["key r"]
        assert tab.locator("#skip").get_attribute("data-lm-suppress-shortcuts") == "true"
        tab.keyboard.press("0")
        assert tab.evaluate("document.activeElement.id") == "field"
        tab.keyboard.type(".5a")
        assert tab.locator("#field").input_value() == "0.5a"  # a field with text keeps its keys
        tab.locator("#field").fill("")
        tab.keyboard.press("Enter")
        assert tab.evaluate("acts") == ["key r", "key Enter"]
    panel.close()


def test_a_click_in_a_panel_within_a_panel_is_for_the_inner_one(
    tmp_path: Path, chromium: Any
) -> None:
    """A click on a job in the monitor's list was an AttributeError of the monitor too."""
    inner = f"""<div class="rk-panel"><div class="rk-acts"><input id="inner"></div><div>{KEYS}</div>
        <button data-act="choose ftjob-1">ftjob-1</button></div>"""
    page = tmp_path / "page.html"
    page.write_text(
        f"""<!doctype html><title>t</title><link rel="icon" href="data:,"><div class="rk-panel">
        <div class="rk-acts"><input id="outer"></div><div>{KEYS}</div>
        <button data-act="step 4">4</button>{inner}</div>"""
    )
    with opened(chromium, page) as tab:
        tab.get_by_role("button", name="ftjob-1").click()
        assert tab.locator("#inner").input_value().startswith("choose ftjob-1 ")
        assert tab.locator("#outer").input_value() == ""
        tab.get_by_role("button", name="4", exact=True).click()
        assert tab.locator("#outer").input_value().startswith("step 4 ")


def test_what_a_menu_inserts_replaces_the_selection_and_can_be_undone(
    tmp_path: Path, chromium: Any
) -> None:
    form = GraderForm(lambda spec: None, lambda action: action(), ["item.topic", "item.answer"])
    page = tmp_path / "page.html"
    page.write_text(
        f"""<!doctype html><title>t</title><link rel="icon" href="data:,">
        <div class="widget-hbox"><input value="see {{{{x}}}} now">{form._inserter().value}</div>"""
    )
    with opened(chromium, page) as tab:
        field, menu = tab.locator("input"), tab.locator("select")
        tab.evaluate("""() => { window.changed = [];
            const field = document.querySelector('input');
            field.addEventListener('change', () => changed.push(field.value));
            field.focus(); field.setSelectionRange(4, 9); }""")
        menu.select_option("item.topic")
        assert field.input_value() == "see {{item.topic}} now"
        assert tab.evaluate("changed") == ["see {{item.topic}} now"]
        assert menu.input_value() == ""  # ready for the next one
        tab.keyboard.press("Control+z")
        assert field.input_value() == "see {{x}} now"
