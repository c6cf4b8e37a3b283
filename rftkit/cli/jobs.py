"""The commands `rftkit job …`; see `rftkit.cli`."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rftkit import integrations
from rftkit.cli.console import (
    PLAIN,
    Format,
    Json,
    Pairs,
    PromptFile,
    ToolsFile,
    parse_pairs,
    parse_values,
    print_json,
    show,
    table,
)
from rftkit.errors import InputError
from rftkit.hyperparameters import check_names

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

    from rftkit.importer import Rerun
    from rftkit.prompts import Prompt

__all__ = ["job_app"]

Method = Literal["reinforcement", "supervised", "dpo"]

SHOWN = ("total_steps", "batch_size", "completions_per_prompt", "learning_rate", "eval_interval")
"""Resolved settings that are shown before a job starts."""

JobId = Annotated[
    str,
    typer.Argument(help="ftjob-…, or its first characters; default the newest."),
]
GivenJob = Annotated[str, typer.Argument(help="ftjob-…, or its first characters.")]

job_app = typer.Typer(help="Create, list, follow, pause and cancel jobs.", **PLAIN)


@job_app.command("create")
def create_job(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Base or fine-tuned model.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="JOB@STEP",
            help="Continue another job from a kept step, optimizer included. Whatever you "
            "leave out is taken from that job.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Argument(
            help="A dataset folder, a bundled dataset, or a JSONL file of training rows."
        ),
    ] = None,
    dataset: Annotated[str | None, typer.Option(metavar="NAME", help="The same as DATA.")] = None,
    train: Annotated[str | None, typer.Option(help="JSONL file to upload, or a file id.")] = None,
    valid: Annotated[
        str | None,
        typer.Option(help="JSONL file to upload, or a file id; needed for reinforcement."),
    ] = None,
    grader: Annotated[
        Path | None,
        typer.Option(
            "--grader",
            "-g",
            help="JSON file of the grader. A reinforcement job learns from its rewards; other jobs "
            "only measure their checkpoints with it.",
        ),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="Learn from graded answers, from the answers of the rows (supervised), or from "
            "pairs of answers (dpo)."
        ),
    ] = "reinforcement",
    response_format: Format = None,
    hyperparameters: Annotated[
        Pairs | None,
        typer.Option(
            "--hyperparameter",
            "-p",
            metavar="NAME=VALUE",
            help="A hyperparameter, such as batch_size=8; repeatable.",
        ),
    ] = None,
    prompt: PromptFile = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON file of a second grader that a reinforcement job does not learn from. An "
            "alarm is raised when its rewards no longer rise with the others.",
        ),
    ] = None,
    metadata: Annotated[
        Pairs | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Stored with the job; some are settings, such as tuning=full. Repeatable.",
        ),
    ] = None,
    tools: ToolsFile = None,
    max_episode_steps: Annotated[
        int | None, typer.Option(help="The most turns of a rollout with tools.", min=1)
    ] = None,
    suffix: Annotated[str | None, typer.Option(help="Part of the new model's name.")] = None,
    seed: Annotated[int | None, typer.Option(help="A fixed seed makes the run repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Upload the files, create a job and print its id.

    With --prompt, the prompt file is put before the messages of every row that is uploaded.
    """
    from rftkit import connect, datasets, jobs
    from rftkit.prompts import read_prompt

    settings, pairs = parse_values(hyperparameters), parse_pairs(metadata)
    check_names(settings, pairs, method)  # before anything is uploaded
    spec = datasets.read_json(grader) if grader else None
    second = datasets.read_json(held_out) if held_out else None
    answer_format = datasets.read_json(response_format) if response_format else None
    entries = datasets.read_tools(tools) if tools else None
    if data and dataset:
        raise InputError(f"give {data} or --dataset {dataset}, not both: they mean the same")
    if train and Path(train).is_dir():
        train, dataset = None, dataset or train
    if named := data or dataset:
        given = datasets.load(named)
        train = train or str(given.train)
        valid = valid or (str(given.valid) if given.valid else None)
        if method == "reinforcement":
            spec, answer_format = spec or given.grader, answer_format or given.response_format
            entries = entries or given.tools
    if source is not None:
        _refuse_for_branch(model=model, method=method, prompt=prompt)
    elif model is None:
        raise InputError("give --model, or --from JOB@STEP to continue another job")
    if train is None and source is None:
        raise InputError("name the data: a folder with train.jsonl, or --train with a file")
    if method == "reinforcement" and source is None and (spec is None or valid is None):
        missing = "--grader" if spec is None else "--valid"
        raise InputError(
            f"a reinforcement job needs {missing}; --method supervised learns from the answers of "
            "the rows without it"
        )
    before = read_prompt(prompt) if prompt else None
    client = connect()
    training_file, validation_file = (
        given and _uploaded(client, given, before, "train" if given is train else "valid")
        for given in (train, valid)
    )
    if source is not None:
        job = jobs.branch(
            client,
            source,
            grader=spec,
            held_out=second,
            training_file=training_file,
            validation_file=validation_file,
            response_format=answer_format,
            hyperparameters=settings,
            metadata=pairs,
            suffix=suffix,
            seed=seed,
            tools=entries,
            max_episode_steps=max_episode_steps,
        )
        _show_created(client, job, as_json)
        return
    assert training_file is not None
    assert model is not None
    job = jobs.create(
        client,
        model=model,
        training_file=training_file,
        validation_file=validation_file,
        method=method,
        grader=spec,
        held_out=second,
        response_format=answer_format,
        hyperparameters=settings or None,
        metadata=pairs or None,
        suffix=suffix,
        seed=seed,
        tools=entries,
        max_episode_steps=max_episode_steps,
    )
    _show_created(client, job, as_json)


def _show_created(client: OpenAI, job: FineTuningJob, as_json: bool) -> None:
    """Print its id, and what the service warns of, such as answers that nothing can score."""
    from rftkit import jobs

    show(job.to_dict(warnings=False), job.id, as_json)
    for event in jobs.events(client, job.id):
        if event["level"] != "info":
            print(_event_line(event), file=sys.stderr)


def _refuse_for_branch(**given: Any) -> None:
    """Options that a branch cannot have."""
    if given["model"] is not None:
        raise InputError("a branch continues the weights of its job; leave out --model")
    if given["method"] != "reinforcement":
        raise InputError("only reinforcement jobs can be branched; leave out --method")
    if given["prompt"] is not None:
        raise InputError("a branch keeps the prompts of its job; leave out --prompt")


@job_app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(help="The number of jobs, newest first.", min=1)] = 20,
    as_json: Json = False,
) -> None:
    """List the newest jobs."""
    from itertools import islice

    from rftkit import connect
    from rftkit.views.facts import moment

    page = connect().fine_tuning.jobs.list(limit=min(limit, 100))
    listed = list(islice(page, limit))
    found = [job.to_dict(warnings=False) for job in listed]
    columns = {
        "id": "id",
        "suffix": "user_provided_suffix",
        "status": "status",
        "model": "model",
        "fine_tuned_model": "fine_tuned_model",
    }
    lines = [
        {
            **{name: wire.get(key) for name, key in columns.items()},
            "created_at": moment(job.created_at),
        }
        for job, wire in zip(listed, found, strict=True)
    ]
    show(found, table(lines), as_json)


@job_app.command("show")
def show_job(job_id: JobId = "", as_json: Json = False) -> None:
    """Show a job: its status, its last events and its checkpoints."""
    from dataclasses import asdict

    from rftkit import connect, jobs
    from rftkit.views.facts import moment

    client = connect()
    job_id = jobs.find(client, job_id)
    job, events = client.fine_tuning.jobs.retrieve(job_id), jobs.events(client, job_id)
    kept = [asdict(each) for each in jobs.checkpoints(client, job_id, events)]
    wire = job.to_dict(warnings=False)
    facts = (
        "id",
        "status",
        "model",
        "fine_tuned_model",
        "seed",
        "training_file",
        "validation_file",
    )
    lines = [f"{name:<17}{wire.get(name)}" for name in facts]
    times = {"created_at": job.created_at, "finished_at": job.finished_at}
    lines += [f"{name:<17}{moment(at)}" for name, at in times.items() if at]
    lines += [f"{'error':<17}{jobs.error_of(job)}"] if jobs.error_of(job) else []
    # warnings and errors are always shown
    early = [event for event in events[:-10] if event["level"] != "info"]
    for some in filter(None, (early, events[-10:])):
        lines += ["", *(_event_line(event) for event in some)]
    lines += ["", table(kept)] if kept else []
    show({"job": wire, "events": events, "checkpoints": kept}, "\n".join(lines), as_json)


def _event_line(event: dict[str, Any]) -> str:
    level = "" if event["level"] == "info" else f"{event['level']}: "
    return f"{level}{event['message']}"


@job_app.command("tree")
def show_tree(job_id: JobId = "", as_json: Json = False) -> None:
    """Show a job and its branches.

    Each line has what the branch changed, and the validation reward that it reached.
    """
    from dataclasses import asdict

    from rftkit import connect, jobs
    from rftkit.views.branches import tree_text

    found = jobs.family(connect(), job_id)
    show([{**asdict(each), "origin": each.origin and str(each.origin)} for each in found],
         tree_text(found), as_json)  # fmt: skip


@job_app.command("watch")
def watch_job(
    job_id: JobId = "",
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(integrations.TYPES),
            help="Send metrics, answers and the report to a tracker; repeatable.",
        ),
    ] = None,
    track_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="For the trackers: project, name, experiment, tracking_uri, folder …; repeatable.",
        ),
    ] = None,
    as_job_says: Annotated[bool, typer.Option("--as-job-says", hidden=True)] = False,
) -> None:
    """Follow a job to its end; Ctrl-C leaves the job running.

    A tracker that is down never stops this command or the job. Watch the job again to continue the
    same run of a tracker.
    """
    from rftkit import connect, jobs
    from rftkit.cli.tracking import entries, follow_tracked

    client = connect()
    found = jobs.find(client, job_id)
    chosen = entries(client, found, track or [], track_option or [], as_job_says=as_job_says)
    if chosen:
        follow_tracked(client, found, chosen, is_quiet=as_job_says)
    elif not as_job_says:
        jobs.wait(client, found, jobs.Progress())


@job_app.command("pause")
def pause_job(job_id: GivenJob, as_json: Json = False) -> None:
    """Pause a running job; its progress is kept."""
    _steer("pause", job_id, as_json)


@job_app.command("resume")
def resume_job(job_id: GivenJob, as_json: Json = False) -> None:
    """Resume a paused job."""
    _steer("resume", job_id, as_json)


@job_app.command("cancel")
def cancel_job(job_id: GivenJob, as_json: Json = False) -> None:
    """Cancel a job permanently; its checkpoints stay."""
    _steer("cancel", job_id, as_json)


@job_app.command("rerun")
def rerun_job(
    job_id: GivenJob,
    model: Annotated[str, typer.Option("--model", "-m", help="A local model.")],
    grader: Annotated[
        Path | None,
        typer.Option("--grader", "-g", help="JSON file of a grader that replaces the job's own."),
    ] = None,
    tools: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON file of tools that replace the job's own."),
    ] = None,
    suffix: Annotated[str | None, typer.Option(help="Part of the new model's name.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Start without a confirmation.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the differences; start nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a job again here, with the same data, grader and settings.

    The differences are listed before the job starts. Imported jobs and local jobs both work.
    """
    status = _rerun(
        job_id,
        model,
        grader=grader,
        tools=tools,
        suffix=suffix,
        is_confirmed=yes,
        dry_run=dry_run,
        as_json=as_json,
    )
    raise typer.Exit(status)


def _uploaded(client: OpenAI, given: str, prompt: Prompt | None, option: str) -> str:
    """The id of a file: uploaded, or given."""
    from rftkit import datasets

    if prompt is None:
        return given if given.startswith("file-") else datasets.upload(client, given).id
    if given.startswith("file-"):
        raise InputError(
            f"--prompt is put before the rows of a file as it is uploaded, and --{option} is the "
            f"uploaded file {given}; give the path of the file"
        )
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{Path(given).name.split('.')[0]}.jsonl"
        datasets.write_prompted(given, path, prompt)
        name = datasets.upload_name(Path(given).with_name(path.name))
        return datasets.upload(client, path, name=name).id


def _steer(verb: Literal["pause", "resume", "cancel"], job_id: str, as_json: bool) -> None:
    from rftkit import connect, jobs

    client = connect()
    job = getattr(client.fine_tuning.jobs, verb)(jobs.find(client, job_id))
    show(job.to_dict(warnings=False), f"{job.id} is {job.status}", as_json)


def _rerun(
    job_id: str,
    model: str,
    *,
    grader: Path | None,
    tools: Path | None,
    suffix: str | None,
    is_confirmed: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Run a job again here, after its differences were shown and confirmed."""
    from rftkit import client, datasets, jobs
    from rftkit.importer import plan_rerun, start_rerun

    if as_json and not (is_confirmed or dry_run):
        raise InputError(
            "--json cannot ask for a confirmation: add --yes to start the job, or --dry-run to see "
            "it first"
        )
    platform = client.connect()
    spec = datasets.read_json(grader) if grader else None
    entries = datasets.read_tools(tools) if tools else None
    planned = plan_rerun(
        platform, jobs.find(platform, job_id), model=model, grader=spec, tools=entries,
        suffix=suffix,
    )  # fmt: skip
    if not as_json:
        print(_rerun_text(planned))
    is_possible = planned.check.verdict != "stops"
    if dry_run:
        if as_json:
            print_json(planned.to_dict())
        return 0 if is_possible else 1
    if is_possible and not is_confirmed:
        _confirm_start()
    job = start_rerun(platform, planned)
    show({**planned.to_dict(), "job": job.to_dict(warnings=False)}, job.id, as_json)
    return 0


def _rerun_text(planned: Rerun) -> str:
    request, job = planned.request, planned.job
    origin = f" of {job['imported_from']}" if job.get("imported_from") else ""
    grader = request["grader"] or {}
    files = [file for file in (request["training_file"], request["validation_file"]) if file]
    lines = [
        f"{job['id']}{origin}, which trained {job.get('model')}, again on {request['model']}",
        f"  data             {', '.join(files)}",
    ]
    if request["method"] != "reinforcement":
        lines += [f"  method           {request['method']}"]
    if grader:
        lines += [f"  grader           {grader.get('name')} ({grader.get('type')})"]
        answer = (request["response_format"] or {}).get("type") or "text"
        lines += [f"  response format  {answer}"]
    if request["tools"]:
        names = (str(each.get("server_label") or each.get("name")) for each in request["tools"])
        lines += [f"  tools            {', '.join(names)}"]
    lines += [f"  seed             {request['seed']}"]
    for name, value in (request["hyperparameters"] or {}).items():
        lines.append(f"  {name:<16} {value}")
    if planned.resolved:
        resolved = ", ".join(
            f"{name} {planned.resolved[name]}" for name in SHOWN if name in planned.resolved
        )
        lines.append(f"  resolved here    {resolved}")
    if planned.check.differences:
        rows = [
            {
                "": "STOPS" if each.stops else "",
                "what": each.about,
                "here": each.here,
                "to change": each.change,
            }
            for each in planned.check.differences
        ]
        lines += ["", table(rows)]
    return "\n".join([*lines, "", f"It {planned.check.sentence}."])


def _confirm_start() -> None:
    if not sys.stdin.isatty():
        raise InputError(
            "there is no terminal to confirm in: add --yes to start, or --dry-run to see it first"
        )
    typer.confirm("Start the job?", abort=True)
