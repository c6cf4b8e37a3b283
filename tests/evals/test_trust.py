"""Can a grader be believed: regrading, people's labels, its own noise, a second grader, runs."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sample_job
from conftest import GRADER, Served
from eval_study import samples_from
from sample_comparison import samples as made_up

from rftkit import evals
from rftkit.errors import InputError
from rftkit.evals import saved_runs
from rftkit.evals.regrade import _reordered
from rftkit.rows import Row
from rftkit.server.inference.worker_process import ChatError

SAME = {
    "type": "string_check", "name": "compliant", "operation": "eq",
    "input": "{{sample.output_json.compliant}}", "reference": "{{item.compliant}}",
}  # fmt: skip
OPPOSITE = {**SAME, "name": "opposite", "operation": "ne"}


def test_the_same_grader_changes_nothing() -> None:
    samples = evals.grade_again(made_up(num_rows=9), SAME)
    found = evals.regrade(samples, SAME, keep_runs=False)
    assert found.rank_correlation.value == pytest.approx(1.0)
    assert not found.flipped_to_pass + found.flipped_to_fail + found.flipped_advantages
    assert not found.gained_signal + found.lost_signal
    assert found.reordered is False


def test_a_tie_is_no_other_best_run() -> None:
    """A grader that pays every run the same was said to have another best one."""
    pairs = [(0.5, 0.6), (0.7, 0.6)]
    runs: list[Any] = [
        SimpleNamespace(before=SimpleNamespace(value=old), after=SimpleNamespace(value=new))
        for old, new in pairs
    ]
    assert _reordered(runs) is False
    runs[0].after.value = 0.9
    assert _reordered(runs) is True


def test_the_opposite_grader_turns_everything_round(home: Path) -> None:
    samples = evals.grade_again(made_up(num_rows=9, steps=(0, 12)), SAME)
    found = evals.regrade(samples, OPPOSITE)
    scored = samples.frame[samples.frame["outcome"] == "graded"]
    flips = len(found.flipped_to_pass) + len(found.flipped_to_fail)
    assert flips == len(scored)
    groups = scored.groupby(["row", "run"])["reward"]
    mixed = int((groups.transform("nunique") > 1).sum())
    assert len(found.flipped_advantages) == mixed
    assert "change verdict" in found.sentence
    assert found.samples.labels[2:] == ["Step 0 · opposite", "Step 12 · opposite"]
    kept = evals.kept()
    assert sorted(kept.labels) == ["Step 0 · opposite", "Step 12 · opposite"]
    assert {run.grader for run in kept.runs} == {"opposite"}
    assert [run.step for run in evals.kept(kept.runs[0].id).runs] == [kept.runs[0].step]


def test_signal_is_gained_and_lost() -> None:
    """Half of the answers of a row are long; a length grader tells them apart, a flat one not."""
    source = "def grade(sample, item):\n    return float(len(sample['output_text']) % 7)"
    length = {"type": "python", "name": "length", "source": source}
    flat = {"type": "python", "name": "flat", "source": "def grade(sample, item):\n    return 0.5"}
    samples = made_up(num_rows=6, steps=(0,))
    told = evals.grade_again(samples, length)
    lost = evals.regrade(told, flat, keep_runs=False)
    assert not lost.gained_signal
    assert lost.lost_signal
    gained = evals.regrade(evals.grade_again(samples, flat), length, keep_runs=False)
    assert set(gained.gained_signal) == set(lost.lost_signal)


def test_a_grader_that_breaks_is_said() -> None:
    broken = {"type": "python", "name": "broken", "source": "def grade(sample, item):\n    1/0"}
    found = evals.regrade(made_up(num_rows=3, steps=(0,)), broken, keep_runs=False)
    assert "could not be graded again" in found.notes[0]
    assert "ZeroDivisionError" in found.notes[0]
    assert found.runs[0].after.value is None or found.runs[0].after.value == 0.0
    with pytest.raises(InputError, match="no sample"):
        evals.regrade(made_up().select([]), SAME)


def labels(samples: evals.Samples, wrong: int, kind: Any = "verdict") -> list[evals.Label]:
    """What people say who agree with the grader's verdict but in every `wrong`-th sample."""
    graded = samples.frame[samples.frame["outcome"] == "graded"]
    return [
        evals.Label(line.row, line.run, line.sample,
                    float(bool(line.passed) != (at % wrong == 0)), kind)
        for at, line in enumerate(graded.itertuples())
    ]  # fmt: skip


def test_agreement_with_people() -> None:
    samples = made_up(num_rows=20)
    given = labels(samples, wrong=5)
    found = evals.agree(samples, given)
    assert found.num_labels == len(given)
    assert found.agreement.value == pytest.approx(0.8, abs=0.01)
    assert len(found.lenient) + len(found.harsh) == len(given) // 5 + (len(given) % 5 > 0)
    assert found.kappa.low is not None
    assert found.kappa.low < (found.kappa.value or 0)
    perfect = evals.agree(samples, labels(samples, wrong=10**9))
    assert perfect.kappa.value is not None
    assert perfect.kappa.value > 0.97
    assert "Agrees with people on" in found.sentence


def test_a_threshold_is_suggested_and_numbers_correlate() -> None:
    samples = made_up(num_rows=20)
    graded = samples.frame[samples.frame["outcome"] == "graded"]
    lines = list(graded.itertuples())
    strict = [evals.Label(x.row, x.run, x.sample, float(x.reward >= 0.8)) for x in lines]
    found = evals.agree(samples, strict, threshold=0.3)
    assert found.suggested is not None
    assert found.suggested.value == pytest.approx(0.8, abs=0.02)
    assert found.suggested.kappa == pytest.approx(1.0)
    assert len(found.lenient) > len(found.harsh) == 0
    assert found.gain is not None
    assert f"A threshold of {found.suggested.value:.3g} agrees better" in found.sentence
    assert f"at least {found.gain:.2f} more" in found.sentence
    numbers = [evals.Label(x.row, x.run, x.sample, x.reward - 0.1, "number") for x in lines]
    scored = evals.agree(samples, numbers)
    assert scored.correlation.value == pytest.approx(1.0)
    assert scored.bias.value == pytest.approx(0.1, abs=0.01)


def test_twenty_of_twenty_right_leave_some_doubt() -> None:
    """Also in rank correlation, and where no threshold could be better."""
    rewards = np.repeat([0.0, 1.0], 10)
    samples = samples_from(np.arange(20), np.zeros(20, int), rewards)
    given = [evals.Label(str(row), "0", 0, float(rewards[row])) for row in range(20)]
    found = evals.agree(samples, given)
    for each in (found.agreement, found.kappa, found.correlation):
        assert each.value == pytest.approx(1.0)
        assert each.high == pytest.approx(1.0)
        assert 0.4 < (each.low or 0) < 0.9
    assert (found.suggested, found.gain) == (None, None)
    assert "threshold" not in found.sentence
    numbers = [evals.Label(str(row), "0", 0, row / 20, "number") for row in range(20)]
    ranked = replace(samples, frame=samples.frame.assign(reward=np.arange(20) / 20))
    assert 0.7 < (evals.agree(ranked, numbers).correlation.low or 0) < 0.95


def test_labels_that_cannot_be_used() -> None:
    samples = made_up(num_rows=6)
    with pytest.raises(InputError, match="label some rows first"):
        evals.agree(samples, [])
    mixed = [evals.Label("r", "Step 0", 0, 1.0), evals.Label("r", "Step 0", 1, 0.4, "number")]
    with pytest.raises(InputError, match="mix verdicts"):
        evals.agree(samples, mixed)
    gone = evals.agree(samples, [evals.Label("nowhere", "Step 0", 0, 1.0)])
    assert (gone.num_labels, gone.num_left_out) == (0, 1)
    assert "No labelled sample has a grade" in gone.sentence


def test_the_noise_of_a_judge_is_found_again() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 1, (400, 1))
    found = evals.noise_of(truth + rng.normal(0, 0.1, (400, 3)), num_rows=200)
    assert found.one_grade == pytest.approx(0.1, abs=0.01)
    assert found.band == pytest.approx(1.96 * 0.1 * np.sqrt(2 / 200), rel=0.1)
    none = evals.judge_noise(made_up(num_rows=6), SAME, max_samples=10)
    assert (none.one_grade, none.num_samples, none.num_grades) == (0.0, 10, 30)
    assert "no noise" in none.sentence
    alone = evals.noise_of(np.array([[0.3, np.nan]]), num_rows=1)
    assert alone.band is None


def test_a_second_grader_that_parts_from_the_reward() -> None:
    source = "def grade(sample, item):\n    return 1 - len(sample['output_text']) / 200"
    short = {"type": "python", "name": "short", "source": source}
    samples = made_up()
    found = evals.drift(samples, sample_job.events(), watch=evals.grade_again(samples, short),
                        watch_name="short")  # fmt: skip
    assert found.parted_at == 6
    assert "short is not: the model exploits its grader" in found.sentences[0]
    assert found.length_ratio == pytest.approx(35 / 22)
    assert found.gap == pytest.approx(0.311, abs=0.01)
    follows = evals.drift(samples, watch=samples)
    assert follows.parted_at is None
    assert list(follows.frame["step"]) == [0, 6, 12, 18, 24]
    quiet = evals.drift(samples.select(["Step 0"]))
    assert quiet.sentences == ("Nothing to watch for drift yet.",)


ROWS = [
    Row({"messages": [{"role": "user", "content": f"say {word}"}], "answer": word}, line)
    for line, word in enumerate(("hi", "ho", "broken"), start=1)
]


def test_a_run_is_asked_graded_and_kept(served: Served) -> None:
    def say(request: dict[str, Any]) -> Any:
        word = request["messages"][-1]["content"].removeprefix("say ")
        return ChatError("no such thing", status=400) if word == "broken" else word

    served.link.say = say
    made = evals.run(served.client, "rftkit-tiny", ROWS, GRADER, samples=2, name="base")
    assert list(made.frame["sample"]) == [0, 1] * 3
    assert list(made.frame["outcome"]) == ["graded"] * 4 + ["failed"] * 2
    assert made.frame["reward"].iloc[:4].tolist() == [1.0] * 4
    assert "no such thing" in made.frame["error"].iloc[5]
    assert made.frame["tokens"].iloc[0] == 2
    again = evals.fetch(served.client, made.runs[0].id)
    assert again.frame["reward"].iloc[:4].tolist() == [1.0] * 4
    assert evals.compare(again).runs[0].num_failed == 2
    with pytest.raises(InputError, match="at least one row"):
        evals.run(served.client, "rftkit-tiny", [], GRADER)


def test_the_text_of_an_answer_that_was_cut_is_graded(served: Served) -> None:
    served.link.say = lambda request: {"text": "hi", "stop_reason": "length"}
    made = evals.run(served.client, "rftkit-tiny", ROWS[:2], GRADER, keep_run=False)
    again = evals.grade_again(made, GRADER)
    for samples in (made, again):
        assert list(samples.frame["outcome"]) == ["graded"] * 2
        assert sorted(samples.frame["reward"]) == [0.0, 1.0]
        assert list(samples.frame["truncated"]) == [True] * 2
        assert evals.compare(samples).runs[0].num_truncated == 2
        [note] = [each for each in evals.compare(samples).notes if "cut off" in each]
        assert note.startswith("2 of 2 samples of rftkit-tiny were cut off at the token limit")
    name = evals.publish(served.client, made, made.labels[0], GRADER, name="again")
    assert published(served, name).frame["truncated"].all()
    floored = evals.grade_again(made, GRADER, purpose="rft")  # as training grades it
    assert list(floored.frame["outcome"]) == ["unscorable"] * 2


def published(served: Served, name: str) -> evals.Samples:
    deadline = time.monotonic() + 60
    while evals.runs.find_runs(served.client, name)[0].run.status != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return evals.fetch(served.client, name)


@pytest.mark.parametrize("inline_bytes", [8 * 2**20, 0])
@pytest.mark.parametrize("said", ["hi", ""])
def test_a_run_is_published(
    served: Served, said: str, inline_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rftkit.evals.local_runs.INLINE_BYTES", inline_bytes)
    served.link.say = lambda request: said
    made = evals.run(served.client, "rftkit-tiny", ROWS[:2], GRADER, keep_run=False)
    name = evals.publish(served.client, made, made.labels[0], GRADER, name="again")
    back = published(served, name)
    assert sorted(back.frame["reward"]) == [0.0, 1.0 if said else 0.0]
    assert set(back.frame["row"]) == set(made.frame["row"])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: Served) -> Any:
    """Type a command in this process."""
    import sys

    from rftkit import client
    from rftkit.cli import app as cli

    def typed(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["rftkit", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out + err

    monkeypatch.setattr(client, "connect", lambda *_: served.client)
    return typed


def test_the_commands(run: Any, served: Served, tmp_path: Path) -> None:
    served.link.say = lambda request: "hi"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row.item) + "\n" for row in ROWS))
    (tmp_path / "grader.json").write_text(json.dumps(GRADER))
    given = ("eval", "run", tmp_path / "rows.jsonl", "-m", "rftkit-tiny", "-g",
             tmp_path / "grader.json")  # fmt: skip
    status, out = run(*given)
    assert (status, "rftkit-tiny" in out, "0.333" in out) == (0, True, True)
    run(*given, "--samples", 2)
    listed = json.loads(run("eval", "list", "--here", "--json")[1])["made_here"]
    assert [each["samples"] for each in listed] == [3, 6]
    ids = [each["id"] for each in listed]
    assert isinstance(listed[0]["created_at"], int)
    served.client.evals.create(
        data_source_config={"type": "custom", "item_schema": {}}, testing_criteria=[GRADER]
    )
    _, out = run("eval", "list")
    assert out.count(f"{datetime.now(UTC):%Y-%m-}") == 3, "a line of an eval and two of runs"
    assert str(listed[0]["created_at"]) not in out
    status, out = run("eval", "compare", *ids, "--slice", "answer", "--csv", tmp_path / "rows.csv")
    assert status == 0
    assert "exactly the same in each of 3 rows" in out
    assert "by answer" in out
    assert (tmp_path / "rows.csv").read_text().startswith("row,number,prompt")
    found = json.loads(run("eval", "compare", *ids, "--json")[1])
    assert found["choice"]["deploy"] == found["baseline"]
    assert ids[0] in run("eval", "show", ids[0])[1]
    assert run("eval", "show", "file-1")[0] == 2
    assert saved_runs.find("localrun_none") is None
    assert run("eval", "show", "localrun_none")[0] == 1


def test_drift_is_looked_for_in_one_job_at_a_time() -> None:
    """Two jobs as one line would be a zigzag, and say nothing of either."""
    from rftkit import views

    first = made_up()
    runs = tuple(replace(run, job_id="ftjob-a") for run in first.runs)
    other = tuple(
        replace(run, job_id="ftjob-b", id=f"{run.id}b", label=f"{run.label} b") for run in runs
    )
    names = dict(zip(first.labels, (run.label for run in other), strict=True))
    frame = first.frame.assign(run=first.frame["run"].map(names))
    one, two = replace(first, runs=runs), replace(first, runs=other, frame=frame)
    both = evals.together(one, two)
    with pytest.raises(InputError, match="validations of 2 jobs"):
        evals.drift(both)
    found = evals.drift_of_jobs(both, lambda job: ())
    assert list(found) == ["ftjob-a", "ftjob-b"]
    assert found["ftjob-a"].frame["step"].is_monotonic_increasing
    shown = views.drift_chart(found)
    assert "<h4>A</h4>" in shown
    assert "<h4>B</h4>" in shown
    assert views.drift_chart({}) == views.note(
        "There are no validations of a job among these runs."
    )
