"""JobLauncher on the real platform: checklist, probe, overrule, start; every control by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import in_process
import openai
import pytest
import sample_job
from conftest import GRADER, Served

from rftkit import datasets, jobs
from rftkit.errors import InputError
from rftkit.jobs.preflight import Check, check_learnability, require
from rftkit.views import launch
from rftkit.widgets import JobLauncher

TINY: dict[str, Any] = {
    "model": "rftkit-tiny",
    "hyperparameters": {"batch_size": 16, "n_epochs": 1, "learning_rate_multiplier": 5},
    "metadata": {"max_completion_tokens": "8"},
    "seed": 1,
}


@pytest.fixture(scope="module")
def launched(platform: openai.OpenAI) -> JobLauncher:
    """Checked, estimated and started, as a notebook does it headless."""
    panel = JobLauncher("tiny_copy", client=platform, **TINY)
    panel.check()
    panel.estimate()
    return panel


def test_the_checklist_says_what_was_found(launched: JobLauncher) -> None:
    checks = {check.name: check for check in launched.checks}
    assert checks["data"].is_green, checks["data"]
    assert checks["learnability"].is_green, checks["learnability"]
    assert "the base model earns" in checks["learnability"].result
    assert launched.data()["check"].tolist() == ["data", "grader", "learnability"]


def test_the_estimate_is_shown_with_what_it_rests_on(launched: JobLauncher) -> None:
    shown = launched.to_html()
    assert "Time" in shown
    assert "Process memory" in shown
    assert "Based on two steps of" in shown.plain
    launched.set(usd_per_hour=3600.0)
    assert "$" in launched.to_html()


def test_the_plan_says_what_auto_means(launched: JobLauncher) -> None:
    shown = launched.set(section="settings") or launched.to_html()
    assert "16 steps, a validation every 4" in shown
    assert "a quarter of the 16 steps" in shown


def test_it_starts_when_what_is_not_green_is_overridden(
    launched: JobLauncher, platform: openai.OpenAI
) -> None:
    held = [check.name for check in launched.checks if not check.is_green]
    if held:
        with pytest.raises(InputError, match="override"):
            launched.start()
    launched.set(overridden=held)
    job_id = launched.start()
    assert platform.fine_tuning.jobs.retrieve(job_id).model == "rftkit-tiny"
    platform.fine_tuning.jobs.cancel(job_id)
    assert job_id in str(launched)


def test_nothing_starts_unchecked(served: Served) -> None:
    panel = JobLauncher("tiny_copy", client=served.client, model="rftkit-tiny")
    with pytest.raises(InputError, match="not checked"):
        panel.start()
    panel.set(overridden=["speed"])
    with pytest.raises(InputError, match="no check 'speed'"):
        panel.start()
    panel.set(overridden=["data", "grader", "learnability"])
    assert panel.start().startswith("ftjob-")


def test_a_changed_form_forgets_what_was_found(launched: JobLauncher) -> None:
    state = {name: value for name, value in launched.state.items() if name != "job_id"}
    again = JobLauncher(client=launched._client, **state)
    again._checks, again._estimate = dict(launched._checks), launched._estimate
    again.set(hyperparameters={"batch_size": 8})
    assert {p.name: p.state for p in again.checks}["learnability"] == "not checked"
    assert {p.name: p.state for p in again.checks}["data"] == "ok"
    again.set(grader=GRADER)
    assert {p.state for p in again.checks} == {"not checked"}


def test_request_and_code_are_the_job(served: Served) -> None:
    panel = JobLauncher("tiny_copy", client=served.client, suffix="mine", **TINY)
    code = panel.code()
    assert "fine_tuning.jobs.create(" in code
    made: list[Any] = []
    fake = type("Jobs", (), {"create": staticmethod(lambda **body: made.append(body) or panel)})
    panel.id = "ftjob-x"  # type: ignore[attr-defined]
    client = type(
        "Client",
        (),
        {
            "fine_tuning": type("F", (), {"jobs": fake}),
            "files": type(
                "Files", (), {"create": staticmethod(lambda **_: type("X", (), {"id": "file-1"}))}
            ),
        },
    )
    program = code.replace("rftkit.connect()", "CLIENT").replace("import rftkit", "")
    exec(program, {"CLIENT": client})
    assert made[0] == {**panel.request(), "training_file": "file-1", "validation_file": "file-1"}


def test_controls_by_hand(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFTKIT_MODE", "live")
    panel = JobLauncher(client=served.client)
    panel.widget()
    panel._form.hyperparameters["n_epochs"].value = "2"
    panel._form.hyperparameters["learning_rate_multiplier"].value = "0.5"
    assert panel.hyperparameters == {"n_epochs": 2, "learning_rate_multiplier": 0.5}
    panel._form.hyperparameters["n_epochs"].value = "auto"
    assert panel.hyperparameters == {"learning_rate_multiplier": 0.5}
    panel._form.hyperparameters["batch_size"].value = "many"
    assert "must be a number or auto" in panel.error
    panel._form.texts["seed"].value = "7"
    panel._form.texts["metadata"].value = "lora_rank=8 kl_coef=0.01"
    assert (panel.seed, panel.metadata) == (7, {"lora_rank": "8", "kl_coef": "0.01"})
    panel._form.specs["grader"].value = json.dumps(GRADER)
    assert panel.grader == GRADER
    panel._form.specs["grader"].value = '{"type": "python", "type": "multi"}'
    assert "the key 'type' appears twice" in panel.error
    panel._form.specs["grader"].value = "{"
    assert "grader is not JSON" in panel.error
    panel.set(dataset="tiny_copy")
    assert panel.train.endswith("tiny_copy/train.jsonl")
    assert panel._form.texts["train"].value == panel.train
    assert panel._go.disabled
    for box in panel._overrides.values():
        box.value = True
    assert not panel._go.disabled
    panel._go.click()
    assert panel.job_id.startswith("ftjob-")
    assert panel.job_id in panel._top.value
    panel.close()


def test_a_folder_of_ones_own_is_offered_and_fills_the_form(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The field took bundled datasets only, and the one for a grader no file in a folder."""
    monkeypatch.setenv("RFTKIT_MODE", "live")
    monkeypatch.chdir(tmp_path)
    bundled = datasets.bundled("tiny_copy")
    shutil.copytree(bundled.train.parent, "recipes")
    panel = JobLauncher(client=served.client)
    fields = {
        each.description: each
        for each in widgets_in(panel.widget())
        if hasattr(each, "description")
    }
    assert "recipes" in fields["Dataset"].options
    assert "recipes/grader.json" in fields["Grader file"].options
    fields["Dataset"].value = "recipes"
    assert (panel.train, panel.valid) == ("recipes/train.jsonl", "recipes/valid.jsonl")
    assert panel.grader == bundled.grader
    fields["Dataset"].value = "recipe"
    assert "recipe" in panel.error
    panel.close()


def widgets_in(box: Any) -> Iterator[Any]:
    for child in box.children:
        yield from widgets_in(child) if hasattr(child, "children") else [child]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows of the methods that learn from given answers."""
    folder = tmp_path_factory.mktemp("rows")
    rows = {"supervised": in_process.ANSWERED, "dpo": in_process.PAIRED}
    for method, lines in rows.items():
        (folder / method).mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / method / "train.jsonl").write_text(text)
    return {method: folder / method for method in rows}


@pytest.mark.parametrize("method", ["supervised", "dpo"])
def test_jobs_that_learn_from_given_answers(
    platform: openai.OpenAI, taught: dict[str, Path], method: str
) -> None:
    settings = {"batch_size": 4, "n_epochs": 1}
    panel = JobLauncher(str(taught[method]), client=platform, model="rftkit-tiny", seed=1)
    assert panel.method == method, "as the rows suggest"
    panel.set(hyperparameters=settings)
    assert [check.name for check in panel.checks] == ["data", "learnability"]
    panel.check()
    panel.estimate()
    assert [check.state for check in panel.checks] == ["warning", "ok"], "eight rows are few"
    panel.set(overridden=["data"])
    assert "learns from the answers of its rows" in panel.to_html()
    assert "hyperparameter" in panel.to_html()
    job = platform.fine_tuning.jobs.retrieve(panel.start())
    assert job.method is not None
    assert job.method.type == method
    platform.fine_tuning.jobs.cancel(job.id)
    with pytest.raises(InputError, match="eval_interval"):
        panel.set(hyperparameters={"eval_interval": 2})


def test_a_form_shows_what_the_method_takes(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RFTKIT_MODE", "live")
    panel = JobLauncher("tiny_copy", client=served.client, hyperparameters={"eval_interval": 4})

    def shown() -> list[str]:
        fields = panel._form.hyperparameters.items()
        return [name for name, field in fields if field.layout.display != "none"]

    panel.widget()
    assert "eval_interval" in shown()
    assert "beta" not in shown()
    panel._methods.value = "dpo"
    assert shown() == ["batch_size", "n_epochs", "learning_rate_multiplier", "beta"]
    assert panel.hyperparameters == {}, "what this method does not take is not sent"
    panel._form.hyperparameters["beta"].value = "0.2"
    body = panel.request()
    assert body["method"] == {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}
    assert json.loads(body["metadata"]["grader"]) == panel.grader, "it measures the checkpoints"
    assert panel._overrides["grader"].layout.display == "none"
    panel._methods.value = "reinforcement"
    assert panel.hyperparameters == {}
    panel.set(grader={})
    with pytest.raises(InputError, match="choose method supervised"):
        panel.check()
    panel.close()


def test_a_hosted_service_gets_no_probe_and_no_plan() -> None:
    with sample_job.serving() as url:
        client = openai.OpenAI(base_url=url, api_key="none")
        panel = JobLauncher("tiny_copy", client=client, model="o4-mini")
        assert panel.plan() is None
        assert [check.name for check in panel.checks] == ["data", "grader"]
        assert "bill" in panel.to_html()
        panel.check()
        assert panel.checks[0].is_green
        with pytest.raises(InputError, match="whole job"):
            panel.estimate()


def test_a_broken_file_is_an_error_of_the_data(served: Served, tmp_path: Any) -> None:
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')
    rows = str(tmp_path / "rows.jsonl")
    panel = JobLauncher(client=served.client, train=rows, valid=rows, grader=GRADER)
    panel.check()
    data, grader, _ = panel.checks
    assert (data.state, grader.state) == ("error", "not checked")
    assert "rows.jsonl:1" in data.details[0]


def metrics(**step: Any) -> list[dict[str, Any]]:
    learning = {name: value for name, value in step.items() if name != "reward"}
    data = {"step": 1, "scores": {"train_reward_mean": step.get("reward")}, "learning": learning}
    return [{"type": "metrics", "data": data}]


@pytest.mark.parametrize(
    ("step", "state", "words"),
    [
        ({"reward": 0.4, "flat_groups": 0.2}, "ok", "earns 0.400"),
        ({"reward": 0.0, "flat_groups": 1.0}, "error", "nothing to learn from"),
        ({"reward": 0.1, "flat_groups": 0.9}, "warning", "90% of its groups"),
        ({"reward": 0.4, "flat_groups": 0.1, "truncated_share": 0.5}, "warning", "cut off"),
        ({"reward": None, "flat_groups": 1.0}, "error", "could be graded"),
    ],
)
def test_learnability(step: dict[str, Any], state: str, words: str) -> None:
    check = check_learnability(metrics(**step))
    assert check.state == state
    assert words in check.result


def test_no_step_no_verdict() -> None:
    assert check_learnability([]).state == "not checked"


def test_points_are_required_by_name() -> None:
    checks = [Check("data", "ok", "fine"), Check("grader", "warning", "a cheat pays")]
    with pytest.raises(InputError, match="override 'grader'"):
        require(checks)
    require(checks, ["grader"])
    assert "! warning, overridden" in launch.checklist(checks, ["grader"])
    assert jobs.require is require


def test_a_second_click_starts_no_second_job(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RFTKIT_MODE", "live")
    overridden = ["data", "grader", "learnability"]
    panel = JobLauncher("tiny_copy", client=served.client, **TINY, overridden=overridden)
    panel.widget()
    assert panel._watch.layout.display == "none"
    panel._go.click()
    panel._go.click()
    assert panel.error == ""
    assert [job.id for job in served.client.fine_tuning.jobs.list()] == [panel.job_id]
    assert panel._go.disabled
    assert f"✓ Started {panel.job_id}" in panel._said.value
    panel._watch.click()
    assert panel._monitors[0].job_id == panel.job_id
    panel.set(seed=2)  # other settings are another job
    assert not panel._go.disabled
    panel._go.click()
    assert len(served.client.fine_tuning.jobs.list().data) == 2
    panel.close()


def test_a_check_that_is_ok_is_not_called_overridden() -> None:
    checks = [Check("data", "ok", "8 rows"), Check("grader", "error", "pays")]
    shown = launch.checklist(checks, ["data", "grader"])
    assert "✓ ok<" in shown
    assert "✗ error, overridden" in shown


def test_the_code_has_names_as_they_are_written() -> None:
    assert "'fällig': " in launch.client_code({"method": {"fällig": "x" * 90}}, {})


def test_a_dataset_with_tools(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFTKIT_MODE", "live")
    panel = JobLauncher("policy_lookup", client=served.client, model="rftkit-tiny")
    assert panel.tools == [{"name": "search_policy", "server_url": "rftkit://policy_lookup"}]
    assert [check.name for check in panel.checks][:3] == ["data", "tools", "grader"]
    panel.widget()
    assert panel._form.of_tools.layout.display == ""
    panel._form.texts["max_episode_steps"].value = "4"
    entry = {"name": "search_policy", "server_url": "http://127.0.0.1:9/", "headers": {
        "Authorization": "Bearer of-the-tool"}}  # fmt: skip
    panel._form.specs["tools"].value = json.dumps([entry])
    assert panel.tools == [entry]
    assert "of-the-tool" not in panel._form.specs["tools"].value
    typed = json.loads(panel._form.specs["tools"].value)
    panel._form.specs["tools"].value = json.dumps(typed)  # what the form shows keeps the header
    assert panel.tools == [entry]
    panel._form.specs["tools"].value = "{}"
    assert "must be a JSON list" in panel.error
    panel.check()
    panel.wait()
    found = {check.name: check for check in panel.checks}
    assert found["data"].state != "error", found["data"]
    assert found["tools"].state == "error"
    assert "nothing answers at 127.0.0.1 port 9" in found["tools"].result
    assert "of-the-tool" not in panel.to_html(max_bytes=2**30)
    panel.set(overridden=[check.name for check in panel.checks if not check.is_green])
    job = served.platform.store.job(panel.start())
    assert job.method["reinforcement"]["tools"][0]["headers"] == entry["headers"]
    assert job.method["reinforcement"]["max_episode_steps"] == 4
    panel._methods.value = "supervised"
    assert panel._form.of_tools.layout.display == "none"
    assert "tools" not in panel.request()["method"]["supervised"]
    panel.close()


def test_tools_whose_names_do_not_match_the_rows_are_an_error(served: Served) -> None:
    panel = JobLauncher("policy_lookup", client=served.client)
    panel.set(tools=[{"name": "search", "server_url": "http://127.0.0.1:9/"}])
    panel.check()
    [data, *_] = panel.checks
    assert data.state == "error"
    assert "function 'search_policy', and `tools` of the job has search" in data.result
