"""JobMonitor and Playground over one real job of `rftkit-tiny`, headless and live."""

from __future__ import annotations

import html as html_module
import io
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import sample_job
from conftest import Served

from rftkit import datasets, evals, jobs, reports, views
from rftkit.errors import InputError
from rftkit.widgets import JobMonitor, Playground

SETTINGS: dict[str, Any] = {
    "batch_size": 16,
    "n_epochs": 1,
    "learning_rate_multiplier": 5,
    "eval_interval": 4,
}


def start(client: openai.OpenAI, **settings: Any) -> str:
    data = datasets.bundled("tiny_copy")
    job = jobs.create(
        client,
        model="rftkit-tiny",
        training_file=datasets.upload(client, data.train).id,
        validation_file=datasets.upload(client, data.valid).id,
        grader=data.grader,
        hyperparameters={**SETTINGS, **settings},
        metadata={"max_completion_tokens": "8"},
        seed=1,
    )
    return job.id


@pytest.fixture(scope="module")
def finished(platform: openai.OpenAI) -> str:
    """The id of a finished job."""
    job_id = start(platform)
    JobMonitor(job_id, client=platform).watch(timeout_seconds=120)
    return job_id


def until(is_so: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ── JobMonitor ──


def test_a_headless_run_waits_and_shows_everything(platform: openai.OpenAI, finished: str) -> None:
    monitor = JobMonitor(finished, client=platform)
    html = monitor.to_html()
    for heading in ("Curves", "Health", "Time", "Rollouts", "Checkpoints", "Events"):
        assert f"<h3>{heading}</h3>" in html
    assert "✓ succeeded" in html
    assert "95 % interval" in html
    assert "16 groups" in html
    assert "step 16 of 16" in str(monitor)
    assert "rk-expires" not in html
    assert monitor.data()["step"].tolist() == list(range(17))


def test_panel_command_and_report_show_one_mean_of_a_sub_grader(
    platform: openai.OpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the answers are cut off. A sub-grader that likes everything it could read has not
    1.000: cut answers get its lowest reward in training, and count with that everywhere."""
    rows = [
        {"messages": [{"role": "user", "content": f"copy: {word}"}], "answer": word}
        for word in ("ab", "ba", "ac", "ca", "bc", "cb", "abcabc", "cbacba", "bcabca", "acbacb")
    ]
    part = {"input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    likes = {**part, "type": "string_check", "name": "likes", "operation": "ne", "reference": "?"}
    close = {**part, "type": "text_similarity", "name": "close", "evaluation_metric": "fuzzy_match"}
    file = platform.files.create(
        file=("rows.jsonl", "\n".join(map(json.dumps, rows)).encode()), purpose="fine-tune"
    )
    job = jobs.create(
        platform,
        model="rftkit-tiny",
        training_file=file.id,
        validation_file=file.id,
        grader={"type": "multi", "name": "both", "graders": {"likes": likes, "close": close},
                "calculate_output": "0.5 * likes + 0.5 * close"},
        hyperparameters={"batch_size": 5, "n_epochs": 1, "eval_interval": 1},
        metadata={"max_completion_tokens": "4", "guidance": "none"},
        seed=1,
    )  # fmt: skip
    said = io.StringIO()
    jobs.wait(platform, job.id, jobs.Progress(said))
    monitor = JobMonitor(job.id, client=platform)
    [compared] = [run for run in evals.compare(evals.fetch(platform, job.id)).runs if run.step == 2]
    assert 0 < compared.num_unscorable < compared.num_samples
    mean = f"{1 - compared.num_unscorable / compared.num_samples:.3f}"
    assert f"{compared.graders['likes'].value:.3f}" == mean

    monkeypatch.setenv("OPENAI_API_KEY", platform.api_key)
    page = reports.run(
        "report_job", tmp_path / "job.html", job_id=job.id, base_url=str(platform.base_url)
    )
    measured = [line for line in said.getvalue().splitlines() if line.strip().startswith("likes")]
    assert f"likes {mean}" in measured[-1]
    assert last_cell(monitor.to_html(), "validation: likes") == mean
    assert last_cell(page.read_text(), "validation: likes") == mean


def last_cell(html: str, heading: str) -> str:
    """What stands under a heading in the last line of the table of curves."""
    [table] = [each for each in re.findall("<table.*?</table>", html, re.S) if heading in each]
    names = re.findall("<th[^>]*>(?:<[^>]*>)*([^<]*)", table)
    return re.findall(r"<td[^>]*>([^<]*)", table)[names.index(heading) - len(names)]


def test_the_newest_job_is_the_default(platform: openai.OpenAI, finished: str) -> None:
    assert JobMonitor(client=platform).job_id == jobs.latest(platform)


def test_there_must_be_a_job(served: Served) -> None:
    with pytest.raises(InputError, match="no job to watch"):
        JobMonitor(client=served.client)
    with pytest.raises(openai.NotFoundError):
        JobMonitor("ftjob-none", client=served.client)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFTKIT_MODE", "live")


def test_it_follows_a_running_job(platform: openai.OpenAI, live: None) -> None:
    monitor = JobMonitor(start(platform), client=platform, poll_seconds=0.2)
    monitor.widget()
    try:
        until(lambda: "step" in monitor._head.value)
        until(lambda: "<svg" in monitor._body.value)
        monitor._choice.value = "rollouts"
        until(lambda: "completions in 16 groups" in monitor._body.value)
        until(lambda: monitor._follow.has_ended)
        until(lambda: "✓ succeeded" in monitor._head.value)
        assert monitor._cancel.disabled
        for section, words in (
            ("health", "Entropy"),
            ("time", "seconds of each step"),
            ("checkpoints", "ckpt-step"),
            ("events", "successfully completed"),
        ):
            monitor.set(section=section)
            until(lambda words=words: words in monitor._body.value)
        assert monitor.error == ""
    finally:
        monitor.close()


def test_pause_resume_and_cancel_by_click(platform: openai.OpenAI, live: None) -> None:
    monitor = JobMonitor(start(platform, n_epochs=50), client=platform, poll_seconds=0.2)
    monitor.widget()
    try:
        until(lambda: not monitor._pause.disabled and len(monitor._view.steps()) > 2)
        monitor._pause.click()
        until(lambda: monitor.job["status"] == "paused")
        until(lambda: monitor._pause.disabled and not monitor._resume.disabled)
        steps = len(monitor._view.steps())
        monitor._resume.click()
        until(lambda: len(monitor._view.steps()) > steps + 1)
        monitor._cancel.click()
        assert monitor._cancel.description == "Really cancel?"
        monitor._cancel.click()
        until(lambda: monitor.job["status"] == "cancelled")
        assert "✗ cancelled" in monitor._head.value
        monitor._pause.click()
        assert "cancelled" in monitor.error
    finally:
        monitor.close()


def test_a_job_is_chosen_from_a_list_that_filters_and_sorts(
    platform: openai.OpenAI, finished: str, live: None
) -> None:
    other = start(platform, n_epochs=50)
    monitor = JobMonitor(finished, client=platform, poll_seconds=0.2)
    monitor.widget()
    try:
        until(lambda: "✓ succeeded" in monitor._head.value)
        assert monitor._fold.get_title(0) == "Choose another job"
        monitor._fold.selected_index = 0
        runs = monitor._list
        until(lambda: other in runs._body.value and finished in runs._body.value)
        line = next(run for run in runs._runs or [] if run.id == finished)
        assert (line.status, line.model, line.method) == (
            "succeeded",
            "rftkit-tiny",
            "reinforcement",
        )
        assert line.dataset == "tiny_copy-train.jsonl"
        assert line.reward is not None
        assert f"{line.reward:.3f}" in runs._body.value
        assert 'aria-current="true"' in runs._body.value

        runs.query = f"succeeded {finished[-8:]}"
        assert finished in runs._body.value
        assert other not in runs._body.value
        runs.query = "nosuchjob"
        assert "Clear the filter" in runs._body.value
        runs.query = ""
        runs._act_sort("reward")
        rewards = runs.data()["reward"].dropna().tolist()
        assert rewards == sorted(rewards, reverse=True)
        runs._act_sort("reward")
        assert runs.data()["reward"].dropna().tolist() == rewards[::-1]
        assert runs.data()["reward"].isna().tolist()[-1], "what is not measured comes last"

        runs._act_choose(other)
        assert monitor.job_id == other
        assert monitor._fold.selected_index is None
        until(lambda: other in monitor._head.value)
        assert monitor.error == runs.error == ""
        assert finished in monitor.jobs()["id"].tolist()
    finally:
        monitor.close()
        platform.fine_tuning.jobs.cancel(other)


def test_a_click_shows_a_section_while_the_service_and_another_drawing_hang(
    platform: openai.OpenAI, finished: str, live: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = JobMonitor(finished, client=platform, poll_seconds=0.2)
    monitor.widget()
    hangs = threading.Event()
    try:
        until(lambda: "<svg" in monitor._body.value)
        curves = monitor._body.value
        monkeypatch.setattr(
            monitor._view, "_checkpoints", lambda: hangs.wait(60) and views.note("")
        )
        monitor._choice.value = "checkpoints"
        assert "Drawing checkpoints" in monitor._body.value
        monitor._choice.value = "curves"
        assert monitor._body.value == curves, "what was drawn before is there at once"
    finally:
        hangs.set()
        monitor.close()


def test_the_end_of_a_job_is_drawn_at_once(
    platform: openai.OpenAI, finished: str, live: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the last drawing took, and however long the next one would be put off."""
    monitor = JobMonitor(finished, client=platform, poll_seconds=0.2)
    ended = dict(monitor.job)
    monitor._follow.job = {**ended, "status": "running"}
    monkeypatch.setattr(monitor._follow, "poll", lambda: False)
    monitor.set(section="events")
    monitor.widget()
    try:
        until(lambda: monitor._drawn.what == ("events", None))
        monitor._drawn = replace(monitor._drawn, again_at=time.monotonic() + 1000)
        monitor._follow.events = [
            *monitor.events,
            {**monitor.events[-1], "id": "e", "message": "!"},
        ]
        monitor._follow.job = ended
        until(lambda: monitor._drawn.news == monitor._view.news)
    finally:
        monitor.close()


def test_closing_stops_the_looks_and_nothing_else(platform: openai.OpenAI, live: None) -> None:
    monitor = JobMonitor(start(platform, n_epochs=50), client=platform, poll_seconds=0.2)
    monitor.widget()
    monitor.close()
    monitor._poller.join(20)
    assert not monitor._poller.is_alive()
    again = JobMonitor(monitor.job_id, client=platform)
    again.watch(until=lambda seen: len(seen.events) > 4, block=True)
    assert again.job["status"] == "running"
    again.cancel()


def test_it_says_when_it_is_stale(served: Served, live: None, monkeypatch: Any) -> None:
    import httpx2

    def refuse(*_: object, **__: object) -> None:
        raise httpx2.ConnectError("unplugged")

    job = served.create_job()
    monitor = JobMonitor(job.id, client=served.client, poll_seconds=0.2)
    monitor.widget()
    try:
        assert "rk-expires" in monitor._head.value
        with monkeypatch.context() as patch:
            patch.setattr(served.http, "send", refuse)
            until(lambda: "requests to the service failed" in monitor._head.value)
        until(lambda: "Stale" not in monitor._head.value)
        served.platform.store.update_job(
            job.id, status="failed", error={"code": "x", "message": "no"}
        )
        until(lambda: "✗ failed" in monitor._head.value)
        assert "! no" in monitor._head.value
    finally:
        monitor.close()


def test_a_hosted_job_says_what_the_service_does_not_show() -> None:
    with sample_job.serving() as url:
        client = openai.OpenAI(base_url=url, api_key="none")
        html = JobMonitor(sample_job.JOB, client=client).to_html()
        assert "does not return training completions" in html
        assert "the uncertainty of a validation is not reported" in html
        assert "alert(1)" not in html.replace("alert(1)&gt;", "")


# ── Playground ──


def test_base_and_final_answer_one_row_and_are_graded(
    platform: openai.OpenAI, finished: str
) -> None:
    play = Playground(finished, client=platform)
    assert next(iter(play.options)) == "base"
    assert list(play.options)[-1].startswith("final")
    assert "Type a prompt or choose a row" in play.to_html()
    play.ask(row=3)
    table = play.data()
    assert table["label"].tolist() == play.chosen
    assert table["reward"].notna().all()
    assert {"exact", "similar"} <= set(table.columns)
    html = play.to_html()
    assert "What changed from base to final" in html
    assert "What the grader knows" in html
    assert table["text"][1] in str(play)


def test_a_question_of_ones_own_is_not_graded(platform: openai.OpenAI, finished: str) -> None:
    play = Playground(finished, client=platform, dataset="tiny_copy")
    play.ask("copy: abc")
    assert play.data()["reward"].isna().all()
    assert "not graded" in play.to_html()
    with pytest.raises(InputError, match="there is no row 10000"):
        play.ask(row=9999)


def test_a_model_that_fails_does_not_spoil_the_others(
    platform: openai.OpenAI, finished: str
) -> None:
    options = {"base": "rftkit-tiny", "gone": "ft:gone"}
    play = Playground(options=options, client=platform, dataset="tiny_copy", chosen=list(options))
    play.ask("copy: abc")
    table = play.data().set_index("label")
    assert table["text"]["base"]
    assert "does not exist" in table["error"]["gone"]
    assert "! failed" in play.to_html()


def test_a_seed_samples_the_same_answers_again(platform: openai.OpenAI, finished: str) -> None:
    play = Playground(
        options={"base": "rftkit-tiny"}, client=platform, dataset="tiny_copy", temperature=2.0
    )

    def answers(seed: int) -> list[str]:
        play.set(seed=seed)
        found = []
        for row in range(4):
            play.ask(row=row)
            assert play.wait(60)
            found += play.data()["text"].tolist()
        return found

    first = answers(8)
    assert answers(9) != first
    assert answers(8) == first


def test_the_controls_of_the_playground(platform: openai.OpenAI, finished: str, live: None) -> None:
    play = Playground(finished, client=platform)
    play.widget()
    try:
        play._models.value = ("base",)
        play._number.value = "two"
        assert "a row must be a number" in play.error
        play._number.value = "3"
        assert (play.chosen, play.row) == (["base"], 2)
        assert play._question.disabled
        play.ask()
        assert play.wait(60)
        until(lambda: "reward" in play._body.value)
        play.set(chosen=[])
        with pytest.raises(InputError, match="at least one model"):
            play.ask()
    finally:
        play.close()


def test_answers_stream(served: Served, live: None) -> None:
    served.link.say = lambda request: "one two three"
    play = Playground(options={"base": "rftkit-tiny"}, client=served.client)
    play.widget()
    seen: list[str] = []
    play._body.observe(lambda change: seen.append(change["new"]), names="value")
    play.ask("count")
    assert play.wait(30)
    assert "onetwothree" in play.data()["text"][0].replace(" ", "")
    play.close()


def test_a_copy_saved_before_the_answers_says_that_they_are_not_finished(
    served: Served, live: None
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def say(request: dict[str, Any]) -> str:
        asked.set()
        assert answer.wait(60)
        return "one two three"

    served.link.say = say
    play = Playground(options={"base": "rftkit-tiny"}, client=served.client)
    play.widget()
    try:
        play.ask("count")
        assert asked.wait(60)
        assert "waiting …" in play._body.value
        for copy in (play._repr_mimebundle_()["text/html"], str(play)):
            assert "waiting" not in copy
            assert "not finished" in copy
        answer.set()
        assert play.wait(60)
        assert "not finished" not in play.to_html()
    finally:
        answer.set()
        play.close()


def test_the_playground_shows_and_grades_tool_calls(served: Served) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"n": 1}'}}
    served.link.say = lambda request: {"text": "", "tool_calls": [call]}
    grader = {
        "type": "string_check", "name": "exact", "operation": "eq", "reference": "look",
        "input": "{{sample.output_tools[0].function.name}}",
    }  # fmt: skip
    play = Playground(
        options={"base": "rftkit-tiny"}, client=served.client, dataset="tiny_copy", grader=grader
    )
    play.ask(row=0)
    assert play.wait(30)
    assert play.data()["tool_calls"].tolist() == [[call]]
    assert play.data()["reward"].tolist() == [1.0]
    assert 'look({"n": 1})' in html_module.unescape(play.to_html())
    assert "(empty)" not in play.to_html()
    play.close()


def test_the_playground_grades_what_there_is_of_a_cut_answer(served: Served) -> None:
    served.link.say = lambda request: {"text": "x", "stop_reason": "length"}
    grader = {
        "type": "string_check", "name": "exact", "operation": "eq",
        "input": "{{sample.output_text}}", "reference": "x",
    }  # fmt: skip
    play = Playground(
        options={"base": "rftkit-tiny"}, client=served.client, dataset="tiny_copy", grader=grader
    )
    play.ask(row=0)
    assert play.wait(30)
    assert play.data()[["truncated", "reward"]].iloc[0].tolist() == [True, 1.0]
    assert "cut off at the token limit" in play.to_html()
    play.close()
