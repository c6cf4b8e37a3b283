"""Comparisons: what is counted, what is said, and what bad input becomes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sample_comparison import comparison
from sample_comparison import samples as made_up

from rftkit import evals
from rftkit.errors import InputError, NotFoundError
from rftkit.evals import multiple_comparisons
from rftkit.evals.samples import COLUMNS, Run, Samples
from rftkit.evals.sentences import names


def table(
    rewards: dict[str, list[list[float | None]]], passed: bool = True, **keys: list[Any]
) -> Samples:
    """Runs from lists: one list per run, in it one list of samples per row."""
    lines = [
        {
            "run": label, "step": pd.NA, "row": f"row{row}", "sample": sample,
            "reward": np.nan if reward is None else reward,
            "passed": None if reward is None or not passed else reward >= 0.5,
            "outcome": "failed" if reward is None else "graded", "truncated": False,
            "tokens": 3.0, "answer": "a", "error": None, "judge": None,
        }
        for label, rows in rewards.items()
        for row, several in enumerate(rows)
        for sample, reward in enumerate(several)
    ]  # fmt: skip
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    frame["passed"] = frame["passed"].astype("boolean")
    items = {
        f"row{row}": {name: values[row] for name, values in keys.items()}
        for row in range(max(map(len, rewards.values()), default=0))
    }
    runs = tuple(Run(label, f"evalrun_{label}") for label in rewards)
    return Samples(runs, frame, items, {key: at for at, key in enumerate(items)})


def test_rows_weigh_alike_and_repeats_are_one_unit() -> None:
    found = evals.compare(table({"a": [[1.0, 1.0, 1.0, 1.0], [0.0], [0.5]]})).runs[0]
    assert found.reward.value == pytest.approx(0.5)
    assert found.reward.num_rows == 3
    assert found.num_samples == 6
    assert found.within_row == 0.0
    by_hand = evals.compare(table({"a": [[0.0, 1.0], [1.0, 1.0]]})).runs[0]
    assert by_hand.within_row == pytest.approx(np.sqrt(0.5 / 2))


def test_a_pair_by_hand() -> None:
    before, after = [[0.0], [0.0], [1.0], [1.0], [0.2]], [[1.0], [0.0], [1.0], [0.0], [0.4]]
    pair = evals.pair(table({"a": before, "b": after}), "a", "b")
    assert (pair.fixed_rows, pair.broken_rows, pair.num_unchanged) == (("row0",), ("row3",), 3)
    assert (pair.up_rows, pair.down_rows) == (("row0", "row4"), ("row3",))
    assert pair.difference.value == pytest.approx(0.04)
    assert pair.mcnemar_p == 1.0
    assert pair.verdict == "unclear"
    assert "No clear difference of b from a" in pair.sentence


def test_a_failed_grade_is_missing_never_a_zero() -> None:
    whole = evals.compare(table({"a": [[1.0], [1.0], [None]], "b": [[1.0], [None], [1.0]]}))
    assert [run.reward.value for run in whole.runs] == [1.0, 1.0]
    assert whole.pairs[0].num_rows == 1
    assert whole.pairs[0].num_left_out == 2
    assert whole.runs[0].failed_share == pytest.approx(1 / 3)
    assert whole.runs[0].failed_rows == ("row2",)
    said = "1 of 3 samples of each of a and b have no grade (33.3%)"  # one note for like runs
    assert [said in note for note in whole.notes].count(True) == 1


def test_runs_with_one_mean_have_no_best() -> None:
    found = evals.compare(table({name: [[0.0], [0.0], [0.0]] for name in "abc"}))
    assert found.choice is not None
    assert found.choice.sentence.startswith("All 3 runs have the same mean (0.000 on 3 rows); each")
    assert found.choice.sentence.endswith("keep a.")


def test_a_job_with_a_clear_best_step() -> None:
    found = comparison()
    assert found.choice is not None
    assert (found.baseline, found.focus) == ("Step 0", "Step 12")
    assert (found.choice.best, found.choice.deploy) == ("Step 12", "Step 12")
    assert "Step 0" not in found.choice.tied
    assert found.choice.sentence.startswith("Step 12 is best (0.585 on 60 rows); steps 6 to 24")
    assert found.choice.sentence.endswith("deploy Step 12.")
    assert found.pair("Step 12").verdict == "better"
    assert [each.value for each in found.slices[0].slices][-1] == "backups"
    assert found.slices[0].slices[-1].verdict == "better"
    assert "fewer than 20 rows" in found.slices[1].notes[0]
    assert list(found.rows["number"]) == list(range(60))
    assert found.rows["change"].isna().sum() == 1
    json.dumps(found.to_dict(), allow_nan=False)
    assert comparison().to_dict() == found.to_dict()  # seeded


def test_every_count_leads_to_its_rows() -> None:
    found = comparison()
    pair = found.pair("Step 12")
    rows = found.rows.set_index("row")
    for key in pair.fixed_rows:
        assert rows.loc[key, "passed/Step 0"] < 0.5 < rows.loc[key, "passed/Step 12"]
    followed = found.samples.answers(pair.fixed_rows[0])
    assert list(followed["run"].drop_duplicates()) == found.samples.labels
    assert pair.num_fixed + pair.num_broken + pair.num_unchanged <= pair.num_rows


STARTED = [("in_progress", "it is in_progress"), ("canceled", "it is canceled"),
           ("completed", "it has graded 3 of 200 rows")]  # fmt: skip


@pytest.mark.parametrize(("status", "why"), STARTED)
def test_a_run_that_has_only_started_does_not_decide(status: str, why: str) -> None:
    rng = np.random.default_rng(3)
    shares = {"Step 0": 0.4, "Step 1": 0.45, "Step 2": 0.55, "Step 3": 0.72}
    rewards = {
        label: rng.binomial(1, share, (200, 1)).astype(float).tolist()
        for label, share in shares.items()
    }
    whole = evals.compare(table(rewards)).choice
    samples = table({**rewards, "Step 4": [[1.0]] * 3})
    runs = (*samples.runs[:-1], replace(samples.runs[-1], status=status))
    found = evals.compare(replace(samples, runs=runs))
    assert whole is not None
    assert found.choice is not None
    assert (found.choice.best, found.choice.deploy) == ("Step 3", "Step 3")
    assert (found.choice.num_rows, found.choice.expected) == (200, whole.expected)
    assert found.choice.left_out == {"Step 4": why}
    assert found.choice.sentence.endswith(f"deploy Step 3. Step 4 is left out: {why}.")
    assert found.pair("Step 4").num_rows == 3


def test_an_unfinished_baseline_is_not_chosen_by_itself() -> None:
    samples = table({"Step 0": [[1.0]], "a": [[0.1]] * 30, "b": [[0.2]] * 30})
    runs = (replace(samples.runs[0], status="failed", step=0), *samples.runs[1:])
    found = evals.compare(replace(samples, runs=runs))
    assert found.baseline == "a"
    assert found.choice is not None
    assert found.choice.left_out == {"Step 0": "it is failed"}
    only = tuple(replace(run, status="in_progress") for run in samples.runs)
    assert evals.compare(replace(samples, runs=only)).choice is not None


@pytest.mark.parametrize("statuses", [("in_progress",) * 4, ("failed", *("completed",) * 3)])
def test_three_rows_are_never_best_of_200(statuses: tuple[str, ...]) -> None:
    """Not when all runs are unfinished either, nor when an unfinished run is all that is left."""
    rng = np.random.default_rng(3)
    several = {
        label: rng.binomial(1, share, (200, 1)).astype(float).tolist()
        for label, share in {"Step 0": 0.4, "Step 1": 0.45, "Step 2": 0.72}.items()
    }
    for whole in (several, {name: several[name] for name in ("Step 0", "Step 2")}):
        samples = table({**whole, "Step 4": [[1.0]] * 3})
        runs = tuple(
            replace(run, status=status)
            for run, status in zip(
                samples.runs, statuses[: len(whole)] + statuses[-1:], strict=True
            )
        )
        choice = evals.compare(replace(samples, runs=runs)).choice
        assert choice is not None
        assert choice.best == "Step 2"
        assert choice.left_out["Step 4"] == "it has graded 3 of 200 rows"
        assert "Step 4 is left out" in choice.sentence


def test_a_baseline_of_few_rows_says_so_and_no_difference_is_larger_than_rewards() -> None:
    rng = np.random.default_rng(7)
    whole = {name: rng.binomial(1, 0.3, (60, 1)).astype(float).tolist() for name in "ac"}
    found = evals.compare(table({**whole, "b": [[1.0]] * 3}), baseline="b")
    assert found.choice is not None
    assert "it has graded only 3 of 60 rows" in found.choice.sentence
    two = table({"a": [[0.0], [1.0]], "b": [[1.0], [1.0]], "c": [[0.0], [1.0]]})
    for pair in evals.compare(two).pairs:
        assert pair.detectable is None
        assert "smallest difference" not in pair.sentence
    lost: list[list[float | None]] = [[1.0] if at < 2 else [None] for at in range(60)]
    pair = evals.pair(table({"a": [[0.0], [1.0]] * 30, "b": lost}), "a", "b")
    assert pair.difference.low is not None or "interval" not in pair.sentence


def test_missing_grades_do_not_cost_the_rows_of_other_runs() -> None:
    """One in ten grades is gone, so of 60 rows hardly one is graded in all of 21 runs."""
    rng = np.random.default_rng(5)
    hard = rng.uniform(0, 0.6, (60, 1))
    rewards = np.clip(hard + np.linspace(0, 0.4, 21) + rng.normal(0, 0.1, (60, 21)), 0, 1)
    full = rewards.mean(axis=0)
    rewards[rng.random(rewards.shape) < 0.1] = np.nan
    assert np.isfinite(rewards).all(axis=1).sum() < 12
    runs = {f"Step {at}": [[None if np.isnan(v) else v] for v in column]
            for at, column in enumerate(rewards.T)}  # fmt: skip
    choice = evals.compare(table(runs)).choice
    assert choice is not None
    assert choice.num_rows == 60
    assert choice.best == f"Step {full.argmax()}"
    assert int(choice.deploy.removeprefix("Step ")) >= 18


def test_a_run_is_not_best_for_having_missed_the_hard_rows() -> None:
    rng = np.random.default_rng(1)
    rewards = np.repeat(np.linspace(0, 1, 40)[:, None], 3, axis=1) + rng.normal(0, 0.02, (40, 3))
    rewards[:, 2] -= 0.1
    rewards[:15, 2] = np.nan
    assert np.nanmean(rewards, axis=0).argmax() == 2
    means, own = multiple_comparisons.run_means(rewards)
    assert means == pytest.approx([0.5, 0.5, 0.4], abs=0.03)
    assert np.isnan(own[:15, 2]).all()
    runs = {name: [[None if np.isnan(v) else v] for v in column]
            for name, column in zip("abc", rewards.T, strict=True)}  # fmt: skip
    choice = evals.compare(table(runs)).choice
    assert choice is not None
    assert choice.best in "ab"
    assert "c" not in choice.tied


def test_complete_rows_have_their_plain_means() -> None:
    rewards = np.random.default_rng(0).uniform(0, 1, (30, 7))
    assert multiple_comparisons.run_means(rewards)[0] == pytest.approx(rewards.mean(axis=0))


def test_a_run_that_loses_its_bad_answers_is_not_better() -> None:
    """The grader breaks on half of the wrong answers of one run: what is left looks good."""
    rng = np.random.default_rng(2)
    before, after = rng.binomial(1, 0.5, (2, 200)).astype(float)
    left: list[list[float | None]] = [
        [None] if value == 0 and rng.random() < 0.6 else [value] for value in after
    ]
    pair = evals.pair(table({"a": before[:, None].tolist(), "b": left}), "a", "b")
    assert (pair.p or 1) < 0.05
    assert pair.verdict == "unclear"
    assert pair.ungraded is not None
    assert pair.ungraded[0] == 0
    assert f"{pair.ungraded[1]} samples of b have no grade, 0 of a" in pair.sentence
    assert (pair.difference.low or 0) <= 0
    sure = evals.pair(table({"a": [[0.0]] * 200, "b": left}), "a", "b")
    assert sure.verdict == "better"  # even if all that is missing were wrong


def words_and_intervals(rng: Any) -> Any:
    """Sentences and slices of a small comparison of any kind, beside their intervals."""
    num_rows, num_runs = int(rng.integers(2, 40)), int(rng.integers(2, 5))
    scale, times = rng.choice([1.0, 10.0, 0.002]), int(rng.integers(1, 4))
    shape = (num_runs, num_rows, times)
    shift = rng.uniform(0, 0.6, (num_runs, 1, 1))
    kind = rng.integers(4)
    rewards = [
        rng.binomial(1, shift + 0.2, shape) * 1.0,
        np.clip(rng.normal(shift, 0.2, shape), 0, 1),
        rng.exponential(shift + 0.1, shape),
        rng.choice([0.0, 0.5, 1.0], shape) + 0.3 * shift,
    ][kind] * scale  # fmt: skip
    rewards = np.where(rng.random(shape) < rng.choice([0.0, 0.1, 0.4]), np.nan, rewards)
    runs = {f"r{at}": [[None if np.isnan(v) else v for v in row] for row in each]
            for at, each in enumerate(rewards.tolist())}  # fmt: skip
    margin = float(rng.choice([0.02, 0.2])) * scale
    topic = [str(n % 3) for n in range(num_rows)]
    return evals.compare(table(runs, topic=topic), margin=margin, slices=["topic"])


@pytest.mark.parametrize("seed", range(25))
def test_a_sentence_never_contradicts_its_interval(seed: int) -> None:
    found = words_and_intervals(np.random.default_rng(seed))
    for pair in found.pairs:
        low, high = pair.difference.low, pair.difference.high
        shown = re.search(r"([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)", pair.sentence)
        if low is None or shown is None:
            continue
        assert low <= pair.difference.value <= high
        for a, b in ((low, high), (float(shown[2]), float(shown[3]))):
            is_apart = "earns more" in pair.sentence or "earns less" in pair.sentence
            assert is_apart == (a > 0 or b < 0) or pair.verdict == "same", pair.sentence
        if pair.verdict == "same":
            assert -found.margin <= low <= high <= found.margin
        if pair.p > 0.05 and pair.difference.low is not None:
            assert pair.difference.low <= 0 <= pair.difference.high
    for each in found.slices[0].slices:
        if each.difference.low is not None:
            is_apart = each.difference.low > 0 or each.difference.high < 0
            assert is_apart == (each.verdict in ("better", "worse"))


def test_nothing_better_keeps_the_baseline() -> None:
    rng = np.random.default_rng(0)
    rewards = {f"Step {s}": rng.binomial(1, 0.5, (40, 1)).astype(float).tolist() for s in range(4)}
    found = evals.compare(table(rewards)).choice
    assert found is not None
    assert found.deploy == "Step 0"
    assert "keep Step 0" in found.sentence


def test_equal_runs_are_the_same_only_within_a_margin() -> None:
    rng = np.random.default_rng(1)
    first = rng.uniform(0, 1, 300)
    second = first + rng.normal(0, 0.05, 300)
    runs = table({"a": first[:, None].tolist(), "b": second[:, None].tolist()})
    assert evals.pair(runs, "a", "b").verdict == "unclear"
    pair = evals.pair(runs, "a", "b", margin=0.03)
    assert pair.verdict == "same"
    assert "earn the same within ±0.03" in pair.sentence
    assert evals.pair(runs, "a", "b", margin=0.0005).verdict == "unclear"


def test_many_looks_are_corrected() -> None:
    rng = np.random.default_rng(7)
    rewards = {f"r{at}": rng.uniform(0, 1, (60, 1)).tolist() for at in range(21)}
    found = evals.compare(table(rewards))
    assert all(pair.num_comparisons == 20 for pair in found.pairs)
    alone = [evals.pair(found.samples, "r0", pair.after) for pair in found.pairs]
    assert all((a.p or 0) >= (b.p or 0) for a, b in zip(found.pairs, alone, strict=True))
    assert {pair.verdict for pair in found.pairs} == {"unclear"}
    wide, narrow = (each.difference.half_width for each in (found.pairs[0], alone[0]))
    assert wide is not None
    assert narrow is not None
    assert wide > 1.3 * narrow
    assert "corrected for 20 comparisons" in found.pairs[0].sentence


NONE: Any = Samples((), table({"a": [[1.0]]}).frame.iloc[:0], {}, {})
BAD = [
    (NONE, "There is nothing to compare: no run was found."),
    (table({"a": []}), "There is nothing to compare: a have no samples."),
    (table({"a": [[0.1], [0.2]]}), "There is one run, a: there is nothing to compare it with."),
    (table({"a": [[None]], "b": [[None]]}), "No sample has a grade: there is no reward"),
    (table({"a": [[1.0]] * 30, "b": [[1.0]] * 30}), "Every sample earned 1: these rows cannot"),
    (table({"a": [[1.0], [0.0]], "b": [[1.0]]}), "1 of 2 rows are in every run"),
    (table({"a": [[1.0], [0.0]], "b": [[], [], [1.0]]}), "No row is in every run"),
    (table({"a": [[1.0], [0.0]], "b": []}), "b has no samples."),
    (table({"a": [[1.0], [0.0]], "b": [[0.0], [1.0]]}), "Only 2 rows can be compared"),
]  # fmt: skip


@pytest.mark.parametrize(("samples", "sentence"), BAD, ids=[words[:30] for _, words in BAD])
def test_bad_input_is_a_sentence_and_never_a_wrong_number(samples: Samples, sentence: str) -> None:
    found = evals.compare(samples, slices=["topic"], margin=0.1)
    assert any(sentence in note for note in found.notes), found.notes
    json.dumps(found.to_dict(), allow_nan=False)
    assert all(pair.verdict in ("unclear", "same") for pair in found.pairs)


def test_equal_rewards_have_no_interval() -> None:
    found = evals.compare(table({"a": [[0.7]] * 60, "b": [[0.7]] * 60}))
    assert found.runs[0].reward.low is None
    assert found.pairs[0].difference.low is None
    assert "exactly the same in each of 60 rows" in found.pairs[0].sentence


@pytest.mark.parametrize("seed", range(20))
def test_few_rows_have_intervals_that_hold_their_mean_within_the_rewards(seed: int) -> None:
    """Eight rows once gave "0.250, -0.05 to 1.22"."""
    rng = np.random.default_rng(seed)
    num_rows, times = int(rng.integers(1, 12)), int(rng.integers(1, 4))
    shape = (num_rows, times)
    kind = [rng.binomial(1, 0.2, shape), rng.beta(5, 1, shape), rng.choice([0, 0.5, 1], shape)]
    runs = {name: kind[seed % 3].tolist() for name in ("a", "b")}
    runs["b"] = np.clip(kind[seed % 3] + rng.uniform(0, 0.4, shape), 0, 1).tolist()
    for run in evals.compare(table(runs)).runs:
        assert run.reward.low is not None
        assert run.reward.high is not None
        assert 0 <= run.reward.low <= run.reward.value <= run.reward.high <= 1
        assert run.reward.low < run.reward.high


def test_few_rows_say_what_they_can_show() -> None:
    five = evals.compare(table({"a": [[0.0]] * 5, "b": [[1.0]] * 5}))
    assert five.pairs[0].verdict == "unclear"
    assert any("in 1 of 16 cases, so they cannot show any" in note for note in five.notes)
    after = [[0.9], [0.6], [1.0], [0.2], [0.4], [0.8], [0.1], [0.7]]
    eight = evals.compare(table({"a": [[0.5]] * 8, "b": after}))
    assert any(
        re.search(r"Only 8 rows .* must be about 0\.\d\d or more", each) for each in eight.notes
    )


def test_one_difference_has_one_interval_and_each_procedure_its_own_words() -> None:
    found = evals.compare(made_up())
    shown = set()
    for pair in found.pairs:
        ends = re.search(r"\(([+-][\d.]+) to ([+-][\d.]+)\)", pair.sentence)
        assert ends
        assert float(ends[1]) == pytest.approx(pair.difference.low, abs=5e-4)
        shown.add(ends[0])
    assert found.choice
    assert set(re.findall(r"\([+-].*? to .*?\)", found.choice.sentence)) <= shown
    unclear = [pair.sentence for pair in found.pairs if pair.verdict == "unclear"]
    assert all("could" not in each and "best" not in each for each in unclear)
    assert "clear difference" not in found.choice.sentence


def test_rows_without_a_shared_grade_are_said() -> None:
    pair = evals.pair(table({"a": [[1.0], [None]], "b": [[None], [1.0]]}), "a", "b")
    assert pair.difference.value is None
    assert "share no graded row" in pair.sentence


def test_runs_under_different_graders_are_not_compared_in_silence() -> None:
    samples = made_up(num_rows=6)
    runs = (replace(samples.runs[0], grader="old"), *samples.runs[1:])
    notes = evals.compare(replace(samples, runs=runs)).notes
    assert any("rewards of different graders" in note for note in notes)
    unfinished = (replace(samples.runs[0], status="in_progress"), *samples.runs[1:])
    notes = evals.compare(replace(samples, runs=unfinished)).notes
    assert "Step 0 is in_progress: it may lack rows." in notes


def test_slices_by_path_function_and_missing_key() -> None:
    rewards = {"a": [[0.1]] * 4, "b": [[0.9]] * 4}
    samples = table(rewards, meta=[{"level": 1}, {"level": 2}, {"level": 2}, {}], n=[1, 2, 3, 4])
    cut = evals.compare(samples, slices=["meta.level", "none"]).slices
    assert {each.value: each.num_rows for each in cut[0].slices} == {"1": 1, "2": 2, "(missing)": 1}
    assert "1 row without 'meta.level'" in cut[0].notes[0]
    assert "No row has the key 'none'" in cut[1].notes[0]
    odd = evals.compare(samples, slices={"odd": lambda item: item["n"] % 2 == 1}).slices[0]
    assert {each.value: each.rows for each in odd.slices}["true"] == ("row0", "row2")
    many = table({"a": [[0.1]] * 60, "b": [[0.2]] * 60}, key=list(range(60)))
    assert "The 50 largest of 60 slices" in evals.compare(many, slices=["key"]).slices[0].notes[0]


def test_what_cannot_be_asked() -> None:
    samples = made_up(num_rows=6)
    with pytest.raises(NotFoundError, match="there is no run 'Step 1'; there are Step 0"):
        evals.compare(samples, baseline="Step 1")
    with pytest.raises(InputError, match="margin must be above zero"):
        evals.compare(samples, margin=-1)
    with pytest.raises(InputError, match="level must be"):
        evals.compare(samples, level=95)


def test_labels_as_people_say_them() -> None:
    runs = [Run(f"Step {step}", str(step), step) for step in (0, 3, 6, 9, 12)]
    assert names(runs, ["Step 3", "Step 6", "Step 9"]) == "steps 3 to 9"
    assert names(runs, ["Step 0", "Step 6", "Step 9"]) == "steps 0 and 6 and 9"
    assert names([Run("base", "1"), Run("tuned", "2")], ["base", "tuned"]) == "base and tuned"
