"""RunCompare and Labeller, headless: state in, rows out."""

from __future__ import annotations

import pytest
import sample_comparison

from rftkit.errors import InputError
from rftkit.widgets import Labeller, RunCompare
from rftkit.widgets.labels import read_labels


@pytest.fixture(scope="module")
def samples():
    return sample_comparison.samples()


@pytest.fixture
def panel(samples):
    return RunCompare(samples, slices=["topic"], margin=0.05)


def test_numbers_kinds_and_words_find_rows(panel):
    pair = panel.comparison.pair("Step 12")
    assert panel.after == "Step 12"
    assert len(panel.data()) == 60

    panel.only = "fixed at Step 12"
    assert set(panel.data()["row"]) == set(pair.fixed_rows)
    panel.set(only="", kind="broken")
    assert set(panel.data()["row"]) == set(pair.broken_rows)
    panel.set(kind="", query="SECTION 51")
    assert panel.data()["number"].tolist() == [51]
    panel.set(query="", sort="number")
    assert panel.data()["number"].tolist() == list(range(60))


def test_another_run_is_compared_when_it_is_chosen(panel):
    panel.after = "Step 24"
    assert panel.wait(30)

    assert panel.comparison.focus == "Step 24"
    panel.only = "broken at Step 24"
    assert len(panel.data()) == panel.comparison.pair("Step 24").num_broken


def test_its_markup_jumps_and_its_pages_turn(panel):
    panel.widget()
    assert 'data-act="jump fixed at Step 12"' in panel._above.value
    panel._act_jump("fixed at Step 12")
    assert "Rows fixed at Step 12" in panel._selection.value
    panel.set(only="", page=2)
    assert "17 to 24 of 60 rows" in panel._count.value
    panel.section = "pair"
    assert "exact McNemar" in panel._above.value
    panel.close()


def test_words_of_no_number_are_refused(panel):
    with pytest.raises(InputError, match="this comparison has no number"):
        panel.only = "fixed at Step 99"


def test_what_is_stored_beside_a_live_panel_is_small(panel):
    assert len(panel.to_html(max_bytes=30_000)) < 30_000
    assert "Rows" in panel.to_html(max_bytes=100_000)


def test_labels_are_typed_kept_and_gone_on_with(samples, tmp_path):
    path = tmp_path / "labels.jsonl"
    panel = Labeller(samples, path, most=12)
    panel.widget()
    for word in ("a", "r", "b", "a"):  # the second one is taken back
        panel._field.value = word
        assert panel._field.value == ""
    panel.submit("")

    assert (panel.place, [each.value for each in panel.labels]) == (3, [1.0, 1.0])
    again = Labeller(samples, path, most=12)
    assert [each.value for each in again.labels] == [1.0, 1.0]
    assert again.place == 2
    assert again.data().columns.tolist()[:3] == ["row", "run", "sample"]
    assert again.agreement().num_labels == 2
    panel.close()


def test_one_key_is_one_label_wherever_the_focus_is(samples, tmp_path):
    """The browser's part, `panel.KEYS`, is tried in test_keys."""
    panel = Labeller(samples, tmp_path / "labels.jsonl", most=5)
    acts = panel.widget().children[1]
    assert "data-rk-keys" in panel._view.value
    for at, key in enumerate(("a", "Enter", "b", "r")):
        acts.value = f"key {key} {at}"
    assert panel.error == ""
    assert (panel.place, [each.value for each in panel.labels]) == (2, [1.0, 0.0])
    panel.close()


def test_the_reward_is_hidden_until_the_label_is_there(samples, tmp_path):
    panel = Labeller(samples, tmp_path / "labels.jsonl", most=5)
    assert "The grader gave" not in panel.to_html()
    panel.submit("a")
    panel.submit("b")
    assert "The grader gave" in panel.to_html()


def test_what_is_no_label_is_refused_in_words(samples, tmp_path):
    panel = Labeller(samples, tmp_path / "labels.jsonl", most=5)
    with pytest.raises(InputError, match="type a to accept, r to reject"):
        panel.submit("maybe")
    panel.submit("0,5")
    with pytest.raises(InputError, match="these labels are numbers"):
        panel.submit("a")
    (tmp_path / "labels.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"labels\.jsonl:1: not a label"):
        read_labels(tmp_path / "labels.jsonl")
