"""A judge is compared with people, and what comes of it holds for exactly this judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Served
from eval_study import samples_from

from rftkit import client, evals, jobs
from rftkit.cli import app as cli
from rftkit.errors import InputError
from rftkit.evals.labels import has_answers
from rftkit.graders import Completion, calibration_statuses, judges, validate
from rftkit.graders.calibrations import Calibration, digest, read_calibration

JUDGE = {
    "type": "score_model",
    "name": "helpful",
    "model": "judge-1",
    "input": [{"role": "user", "content": "Is this helpful? {{sample.output_text}}"}],
}


def judge(**question: Any) -> Completion:
    """Likes long answers, whatever they say."""
    said = question["messages"][-1]["content"]
    return Completion(text=json.dumps({"steps": [], "result": float(len(said) > 40)}))


def lines(num: int = 60) -> list[dict[str, Any]]:
    """On `easy` topics people think like the judge; on `hard` ones they do not care for length."""
    rng = np.random.default_rng(3)
    found = []
    for number in range(num):
        is_long, topic = bool(rng.random() < 0.5), ("easy", "hard")[number % 2]
        is_good = is_long if topic == "easy" else bool(rng.random() < 0.5)
        item = {"messages": [{"role": "user", "content": f"q{number}"}], "topic": topic}
        found.append(
            {
                "item": item,
                "sample": "a long answer that goes on and on" if is_long else "short",
                "label": "accept" if is_good else "reject",
            }
        )
    return found


def labelled(path: Path, num: int = 60) -> Path:
    path.write_text("\n".join(map(json.dumps, lines(num))))
    return path


def test_agreement_by_class_and_slice_with_intervals(tmp_path: Path) -> None:
    samples, labels = evals.labelled_answers(labelled(tmp_path / "labels.jsonl", 200))
    found = evals.calibrate(samples, labels, JUDGE, slices=["topic"], complete=judge)
    easy, hard = (next(e for e in found.slices if e.value == v) for v in ("easy", "hard"))
    assert easy.found.agreement.value == 1.0
    assert hard.fails
    assert not easy.fails
    assert [each.value for each in found.slices] == ["hard", "easy"]
    assert [each.label for each in found.overall.classes] == ["reject", "accept"]
    for each in (found.overall.kappa, *(c.measured for c in found.overall.classes)):
        assert each.low is not None
        assert each.high is not None
        assert each.low <= (each.value or 0) <= each.high
    assert any("`topic` = hard" in each for each in found.sentences)
    assert found.overall.lenient
    assert found.overall.harsh


def test_a_calibration_expires_with_model_prompt_or_settings_but_not_with_the_name() -> None:
    spec = validate(JUDGE)
    [mine] = judges(spec).values()
    same = [{**JUDGE, "name": "other"}, {**JUDGE, "pass_threshold": 0.7}]
    changed: list[dict[str, Any]] = [
        {**JUDGE, "model": "judge-2"},
        {**JUDGE, "input": [{"role": "user", "content": "Is it? {{sample.output_text}}"}]},
        {**JUDGE, "sampling_params": {"temperature": 0.0}},
        {**JUDGE, "range": [0, 10]},
    ]
    assert {digest(validate(each)) for each in same} == {digest(mine)}
    assert len({digest(validate(each)) for each in changed} | {digest(mine)}) == 5
    part = {"type": "multi", "graders": {"a": JUDGE}, "calculate_output": "a"}
    assert digest(judges(validate(part))["a"]) == digest(mine)


def test_how_a_judge_stands(tmp_path: Path) -> None:
    samples, labels = evals.labelled_answers(labelled(tmp_path / "labels.jsonl"))
    known = evals.calibrate(samples, labels, JUDGE, complete=judge).record()
    spec = validate(JUDGE)
    assert [each.state for each in calibration_statuses(spec, [known])] == ["calibrated"]
    assert [each.state for each in calibration_statuses(spec, [known], floor=0.95)] == ["poor"]
    assert [each.state for each in calibration_statuses(spec, [])] == ["none"]
    other = validate({**JUDGE, "model": "judge-2"})
    assert [each.state for each in calibration_statuses(other, [known])] == ["expired"]
    assert (
        calibration_statuses(
            validate({"type": "python", "source": "def grade(s, i): return 1"}), []
        )
        == []
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "2"}, "`version` must be a whole number"),
        ({"version": 2}, "a newer rftkit"),
        ({"low": "x"}, "`low`"),
        ({"low": float("nan")}, "NaN is not a JSON number"),
        ({"num_labels": None}, "`num_labels`"),
        ({"extra": 1}, "`extra`"),
    ],
)
def test_a_damaged_calibration_is_no_calibration(changes: dict[str, Any], said: str) -> None:
    kept = Calibration(
        digest="d", name="n", model="m", statistic="kappa", value=1, low=0.5, high=1, num_labels=9
    ).to_dict()
    assert read_calibration(json.dumps(kept), "x.json").low == 0.5
    with pytest.raises(InputError, match=said):
        read_calibration(json.dumps({**kept, **changes}), "x.json")


def test_a_seed_of_any_length_has_a_digest() -> None:
    long = {**JUDGE, "sampling_params": {"seed": 10**400}}
    one, other = ({**JUDGE, "sampling_params": {"top_p": value}} for value in (1, 1.0))
    assert digest(validate(long)) != digest(validate(JUDGE))
    assert digest(validate(one)) == digest(validate(other))


@pytest.mark.parametrize(
    ("labels", "said", "why"),
    [
        (["accept", "reject", "accept"], "first impression", "lower end of the interval"),
        (["accept"] * 3, "label answers that people reject too", "labels or all of its verdicts"),
        (["accept"], "label answers that people reject too", "not defined on 1 label,"),
        (["reject"] * 40, "label answers that people accept too", "is not shown to agree"),
        ([0.9, 0.1], "on 2 labels", "is not shown to agree"),
        ([0.5] * 9, "there is no order to compare", "not defined on 9 labels,"),
    ],
)
def test_few_labels_and_labels_of_one_kind_are_never_a_calibration(
    tmp_path: Path, labels: list[Any], said: str, why: str
) -> None:
    path = tmp_path / "labels.jsonl"
    told = [
        {"item": {"q": at}, "label": label,
         "sample": "a long answer that goes on and on" if label in ("accept", 0.9) else "short"}
        for at, label in enumerate(labels)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, told)))
    samples, given = evals.labelled_answers(path)
    found = evals.calibrate(samples, given, JUDGE, complete=judge)
    assert said in " ".join(found.sentences)
    assert "0000" not in " ".join(found.sentences)
    [standing] = calibration_statuses(validate(JUDGE), [found.record()])
    assert standing.state == "poor"
    assert why in standing.message


def test_a_slice_or_threshold_that_cannot_be_is_refused_before_a_judge_is_paid(
    tmp_path: Path,
) -> None:
    def unpaid(**_: Any) -> Completion:
        raise AssertionError

    samples, labels = evals.labelled_answers(labelled(tmp_path / "labels.jsonl"))
    for options, said in (
        ({"slices": ["topik"]}, "no labelled row has the key 'topik'; did you mean topic"),
        ({"threshold": float("nan")}, "must be a finite number"),
    ):
        with pytest.raises(InputError, match=said):
            evals.calibrate(samples, labels, JUDGE, complete=unpaid, **options)  # type: ignore[arg-type]


def test_a_relative_judge_cannot_be_calibrated_but_the_parts_beside_it_can(tmp_path: Path) -> None:
    samples, labels = evals.labelled_answers(labelled(tmp_path / "labels.jsonl"))
    task = [{"role": "user", "content": "{{item.topic}}"}]
    better = {"type": "relative", "name": "better", "model": "judge-1", "input": task}
    both = {"type": "multi", "graders": {"b": better, "h": JUDGE}, "calculate_output": "b + h"}
    for part in (None, "h"):
        found = evals.calibrate(samples, labels, both, part=part, complete=judge)
        assert (found.part, found.overall.num_labels) == ("h", 60)
    for spec, part in ((both, "b"), (better, None)):
        with pytest.raises(InputError, match="relative judges cannot be calibrated"):
            evals.calibrate(samples, labels, spec, part=part, complete=judge)
    states = {each.key: each for each in calibration_statuses(validate(both), [found.record()])}
    assert states["h"].state == "calibrated"
    assert "relative judges cannot be calibrated" in states["b"].message


def test_a_judge_that_fails_is_no_disagreement(tmp_path: Path) -> None:
    def broken(**question: Any) -> Completion:
        return (
            Completion(text=None, refusal="no") if "short" in str(question) else judge(**question)
        )

    samples, labels = evals.labelled_answers(labelled(tmp_path / "labels.jsonl"))
    found = evals.calibrate(samples, labels, JUDGE, complete=broken)
    assert found.num_failed == sum(each["sample"] == "short" for each in lines())
    assert found.overall.num_labels == 60 - found.num_failed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"sample": "x", "label": 1}', "expected `item`"),
        ('{"item": {}, "sample": "x", "label": "maybe"}', "found 'maybe'"),
        ('{"item": {}, "label": 1}', "the answer must be"),
        ('{"text": 1}', "expected a label"),
        ("", "has no labels"),
        ("[1]", "1:"),
    ],
)
def test_a_label_that_cannot_be_read_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "l.jsonl").write_text(text)

    def read() -> Any:
        path = tmp_path / "l.jsonl"
        return has_answers(path) and evals.labelled_answers(path)

    with pytest.raises(InputError, match=said):
        read()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"value": "accept"}, "`value`"),
        ({"value": True}, "`value`"),
        ({"sample": "0"}, "`sample`"),
        ({"row": 3}, "`row`"),
        ({"kind": "grade"}, "`kind`"),
        ({"note": "x"}, "`note`"),
    ],
)
def test_a_line_of_the_labeller_is_checked(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    line = {"row": "r", "run": "a", "sample": 0, "value": 1, "kind": "verdict", "by": ""}
    path = tmp_path / "l.jsonl"
    path.write_text(f"{json.dumps(line)}\n{json.dumps({**line, **changes})}\n")
    with pytest.raises(InputError, match=rf"l\.jsonl:2: not a label: {said}"):
        evals.read_labels(path)


def test_a_sample_of_labels_is_a_second_grader_that_drift_compares_with() -> None:
    """The reward rises at every validation; people, who label half of the answers, see no gain."""
    rng = np.random.default_rng(5)
    rows, steps = np.tile(np.arange(60), 4), np.repeat([0, 4, 8, 12], 60)
    rewards = np.clip(0.3 + 0.04 * steps + rng.normal(0, 0.1, 240), 0, 1)
    samples = samples_from(rows, steps, rewards)
    frame = samples.frame
    for falls in (0.0, 0.05):
        labels = [
            evals.Label(row, run, 0, float(0.8 - falls * int(run) + rng.normal(0, 0.1)), "number")
            for row, run in zip(frame["row"], frame["run"], strict=True)
            if int(row) % 2
        ]
        people = evals.as_grades(samples, labels)
        assert int(people.frame["reward"].notna().sum()) == len(labels)
        found = evals.drift(samples, watch=people, watch_name="people")
        assert (found.parted_at is not None) == bool(falls)


def test_a_held_out_judge_is_mentioned_and_grades_single_answers(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RFTKIT_JUDGE_BASE_URL", "http://judge.test/v1")
    plain = {"type": "python", "name": "p", "source": "def grade(sample, item):\n    return 1.0"}

    def create(held_out: dict[str, Any], **metadata: str) -> Any:
        metadata["held_out_grader"] = json.dumps(held_out)
        method = {"type": "reinforcement", "reinforcement": {"grader": plain}}
        return served.create_job(method=method, metadata=metadata)

    job = create(JUDGE, require_calibration="refuse")
    [event] = [
        each
        for each in jobs.events(served.client, job.id)
        if "In the held-out grader: The judge `helpful` has no calibration" in each["message"]
    ]
    assert event["level"] == "warn"
    assert event["data"]["held_out"][0]["state"] == "none"
    task = [{"role": "user", "content": "{{item.topic}}"}]
    better = {"type": "relative", "name": "better", "model": "judge-1", "input": task}
    with pytest.raises(Exception, match="compares the answers of a group") as refused:
        create(better)
    assert refused.value.param == "metadata.held_out_grader.anchor"  # type: ignore[attr-defined]


def test_the_gate_at_the_front_door(
    served: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Says so, marks, refuses; after `grader calibrate` the job is created; a change expires it."""
    monkeypatch.setenv("RFTKIT_JUDGE_BASE_URL", "http://judge.test/v1")
    monkeypatch.setattr(client, "connect", lambda *_: served.client)
    monkeypatch.setattr(client, "judge_call", lambda: judge)

    def create(grader: dict[str, Any] = JUDGE, **metadata: str) -> Any:
        method = {"type": "reinforcement", "reinforcement": {"grader": grader}}
        return served.create_job(method=method, metadata=metadata)

    def standing(job: Any) -> Any:
        found = [
            e for e in jobs.events(served.client, job.id) if (e["data"] or {}).get("calibration")
        ]
        [event] = found
        return event["level"], event["data"]["calibration"][0]["state"], event["message"]

    damaged = json.dumps({"object": "rftkit.calibration", "version": "2"}).encode()
    served.client.files.create(file=("calibration-x.json", damaged), purpose="user_data")
    level, state, message = standing(create())
    assert (level, state) == ("warn", "none")
    assert "rftkit grader calibrate" in message
    assert create(require_calibration="mark").metadata["uncalibrated"] == "helpful (none)"
    with pytest.raises(Exception, match="has no calibration") as refused:
        create(require_calibration="refuse")
    assert refused.value.code == "judge_not_calibrated"  # type: ignore[attr-defined]
    assert not jobs.check_calibration(served.client, JUDGE).is_green

    (tmp_path / "grader.json").write_text(json.dumps(JUDGE))
    path = labelled(tmp_path / "labels.jsonl")
    words = ["rftkit", "grader", "calibrate", tmp_path / "grader.json", path, "--slice", "topic"]
    monkeypatch.setattr("sys.argv", list(map(str, words)))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    out = capsys.readouterr().out
    assert "people: accept" in out
    assert "topic = hard" in out

    job = create(require_calibration="refuse")
    assert standing(job)[:2] == ("info", "calibrated")
    assert jobs.check_calibration(served.client, JUDGE).is_green
    assert create(require_calibration="mark").metadata == {"require_calibration": "mark"}
    with pytest.raises(Exception, match="has expired"):
        create({**JUDGE, "model": "judge-2"}, require_calibration="refuse")
    with pytest.raises(Exception, match="well enough"):
        create(require_calibration="refuse", calibration_floor="0.9")
    with pytest.raises(Exception, match="one of none, mark, refuse"):
        create(require_calibration="yes")
