"""Misspelt and misplaced settings are refused alike by command, panel, sweep and server."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import GRADER, Served

from rftkit import client, jobs
from rftkit.errors import InputError
from rftkit.hyperparameters import (
    HYPERPARAMETERS,
    KNOBS,
    METHODS,
    Number,
    Words,
    check_names,
)
from rftkit.reports.job_sweep import _complete
from rftkit.server.api import job_body
from rftkit.server.engine.torch.loss import LOSSES
from rftkit.server.training.advantages import ADVANTAGES
from rftkit.server.training.schedule import SCHEDULES
from rftkit.widgets import JobLauncher


def method(**more: Any) -> dict[str, Any]:
    return {"type": "reinforcement", "reinforcement": {"grader": GRADER, **more}}


SERVER = Path(job_body.__file__).parents[1]


@pytest.mark.parametrize(
    ("hyperparameters", "metadata", "message"),
    [
        ({"batchsize": 4}, {}, "did you mean batch_size?"),
        ({"Batch-Size": 4}, {}, "did you mean batch_size?"),
        ({"epochs": 4}, {}, "did you mean n_epochs?"),
        ({"learning_rate": 4}, {}, "did you mean learning_rate_multiplier?"),
        ({"colour": 4}, {}, f"there are {', '.join(HYPERPARAMETERS)}"),
        ({"max_completion_tokens": 4}, {}, "it is metadata: --metadata max_completion_tokens=…"),
        ({}, {"batch_size": "4"}, "metadata 'batch_size' has no effect: it is a hyperparameter"),
        ({}, {"max_completion_token": "4"}, "did you mean max_completion_tokens?"),
    ],
)
def test_names_of_settings(
    hyperparameters: dict[str, Any], metadata: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        check_names(hyperparameters, metadata)


def test_a_hyperparameter_of_another_method_is_named_with_its_methods() -> None:
    with pytest.raises(InputError, match="'beta' of supervised jobs; dpo jobs have it"):
        check_names({"beta": 0.1}, method="supervised")


def test_metadata_is_anybodys() -> None:
    check_names({"batch_size": 4}, {"ticket": "1", "batch": "7", "lora_rank": "4", "probe": "true"})


def by_client(served: Served, **settings: Any) -> Any:
    return jobs.create(
        served.client,
        model="rftkit-tiny",
        training_file="file-1",
        validation_file="file-1",
        grader=GRADER,
        hyperparameters=settings,
    )


def by_panel(served: Served, **settings: Any) -> Any:
    return JobLauncher(client=served.client, hyperparameters=settings)


def by_sweep(served: Served, **settings: Any) -> Any:
    return _complete({"model": "rftkit-tiny", "dataset": "tiny_copy", **settings})


def by_server(served: Served, **settings: Any) -> Any:
    return served.create_job(method=method(hyperparameters=settings))


@pytest.mark.parametrize("create", [by_client, by_panel, by_sweep, by_server])
def test_a_misspelt_hyperparameter_starts_nothing(
    served: Served, create: Callable[..., Any]
) -> None:
    with pytest.raises((InputError, openai.BadRequestError), match=r"did you mean batch_size\?"):
        create(served, batchsize=4)
    assert served.client.fine_tuning.jobs.list().data == []


def test_the_command_refuses_it_before_it_uploads(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from rftkit.cli import app as cli

    monkeypatch.setattr(client, "connect", lambda *_: served.client)
    words = ["job", "create", "-m", "rftkit-tiny", "--dataset", "tiny_copy", "-p", "batchsize=4"]
    done = CliRunner().invoke(cli.app, words)
    assert "did you mean batch_size?" in str(done.exception)
    assert served.client.files.list().data == []


def test_a_sweep_says_how_nested_settings_are_written(served: Served) -> None:
    with pytest.raises(InputError, match="write batch_size: 4; seed: 1"):
        by_sweep(served, hyperparameters={"batch_size": 4, "seed": 1})
    with pytest.raises(InputError, match=r"write metadata\.max_completion_tokens: 8"):
        by_sweep(served, metadata={"max_completion_tokens": 8})


@pytest.mark.parametrize(
    "body",
    [
        {"extra_body": {"batch_size": 4}},
        {"method": {**method(), "batch_size": 4}},
        {"method": method(batch_size=4)},
    ],
)
def test_a_hyperparameter_in_another_place_starts_nothing(
    served: Served, body: dict[str, Any]
) -> None:
    place = "it is a hyperparameter: `method.reinforcement.hyperparameters.batch_size`"
    with pytest.raises(openai.BadRequestError, match=re.escape(place)):
        served.create_job(**body)
    assert served.client.fine_tuning.jobs.list().data == []


def test_settings_of_a_method_that_the_job_has_not_start_nothing(served: Served) -> None:
    both = {**method(), "supervised": {"hyperparameters": {"n_epochs": 3}}}
    with pytest.raises(openai.BadRequestError, match=r"`method\.supervised` would have no effect"):
        served.create_job(method=both)
    served.create_job(method={**method(), "supervised": None, "dpo": {}})


def test_a_panel_says_where_a_hyperparameter_goes(served: Served) -> None:
    with pytest.raises(InputError, match=r"set hyperparameters=\{'batch_size': 4\}"):
        JobLauncher(client=served.client, batch_size=4)
    with pytest.raises(InputError, match=r"set metadata=\{'lora_rank': '8'\}"):
        JobLauncher(client=served.client, lora_rank=8)


@pytest.mark.parametrize("where", ["method", "body"])
def test_other_misspelt_parameters_are_refused_by_the_server(served: Served, where: str) -> None:
    body: dict[str, Any] = {"method": method(responseformat={"type": "text"})}
    if where == "body":
        body = {"extra_body": {"validationfile": "file-1"}}
    with pytest.raises(openai.BadRequestError, match="did you mean"):
        served.create_job(**body)


def test_metadata_without_effect_is_named_in_the_first_events(served: Served) -> None:
    job = served.create_job(metadata={"batch_size": "4", "owner": "me"})
    messages = [event.message for event in served.client.fine_tuning.jobs.list_events(job.id)]
    assert "metadata 'batch_size' has no effect: it is a hyperparameter" in messages


def test_every_name_in_the_table_can_be_trained_with() -> None:
    """A new loss, kind of advantage or schedule is a function and its name in the table."""
    named = {name: set(knob.words) for name, knob in KNOBS.items() if isinstance(knob, Words)}
    assert named["loss"] == set(LOSSES)
    assert named["advantage"] == set(ADVANTAGES)
    assert named["schedule"] == set(SCHEDULES)


def test_the_readme_of_training_has_every_setting_with_its_default() -> None:
    text = (SERVER / "training" / "README.md").read_text(encoding="utf-8")
    for name in {*KNOBS, *(name for known in METHODS.values() for name in known)}:
        assert f"`{name}`" in text, name
    for name, knob in KNOBS.items():
        if isinstance(knob, Number):
            assert re.search(rf"`{name}`(?: and `\w+`)?\s\({knob.default:g}\)", text), name
        elif isinstance(knob, Words):
            assert all(word in text for word in knob.words), name


def test_the_list_of_settings_is_what_the_trainer_reads() -> None:
    sources = "".join(path.read_text() for path in (SERVER / "training").glob("*.py"))
    read = set(re.findall(r'knobs\.(?!word)\w+\(\s*"(\w+)"', sources))
    read |= set(re.findall(r'knobs\.word\(\s*"(\w+)"', sources))
    assert read <= set(KNOBS)
    sources += "".join(path.read_text() for path in (SERVER / "api").glob("*.py"))
    sources += (SERVER.parent / "lineage.py").read_text()
    assert [name for name in KNOBS if f'"{name}"' not in sources] == []
