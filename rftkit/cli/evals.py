"""The commands `rftkit eval …`; see `rftkit.cli`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rftkit.cli.console import PLAIN, Format, Json, PromptFile, ToolsFile, show, table
from rftkit.errors import NotFoundError, nearest_name
from rftkit.safetext import cells
from rftkit.wholefile import check_output, write_whole

if TYPE_CHECKING:
    from openai import OpenAI

    from rftkit.evals import Comparison, Samples

__all__ = ["eval_app"]

eval_app = typer.Typer(help="Run models on a dataset; list and compare eval runs.", **PLAIN)

Names = Annotated[
    list[str], typer.Argument(help="ftjob-… (its validations), eval_…, evalrun_…, localrun_…")
]
Dump = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Read the runs from a dump of rftkit import.")
]


@eval_app.command("run")
def run_eval(
    data: Annotated[
        Path, typer.Argument(help="A file of rows; or a folder or a name, for its test rows.")
    ],
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="Base model or checkpoint; repeatable.")
    ],
    grader: Annotated[
        Path | None,
        typer.Option("--grader", "-g", help="JSON file of the grader; default the folder's."),
    ] = None,
    response_format: Format = None,
    tools: ToolsFile = None,
    prompt: PromptFile = None,
    samples: Annotated[int, typer.Option(help="Answers to sample per row.", min=1)] = 1,
    temperature: Annotated[float | None, typer.Option(help="0 gives the likeliest answer.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Longest answer, or turn, in tokens; default what the service allows.", min=1
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run models on a dataset, grade the answers and save the runs."""
    from tqdm import tqdm

    from rftkit import connect, datasets, evals
    from rftkit.client import judge_call
    from rftkit.prompts import read_prompt

    before = read_prompt(prompt) if prompt else None
    given = datasets.load(data)
    rows = list(datasets.read(given.test or given.valid or given.train))
    spec = datasets.read_json(grader) if grader else given.need("grader").grader
    assert spec is not None  # `need` raises
    answer_format = (
        datasets.read_json(response_format) if response_format else given.response_format
    )
    entries = datasets.read_tools(tools) if tools else given.tools
    client = connect()
    for each in model:
        _check_model(client, each)
    given_options = {"temperature": temperature, "max_completion_tokens": max_tokens}
    options: dict[str, Any] = {
        name: value for name, value in given_options.items() if value is not None
    }
    made = []
    for each in model:
        with tqdm(total=len(rows) * samples, desc=each, unit="answer", disable=None) as bar:
            made.append(
                evals.run(
                    client,
                    each,
                    rows,
                    spec,
                    samples=samples,
                    response_format=answer_format,
                    prompt=before,
                    name=f"{each} with {prompt.stem}" if prompt else None,
                    grading={"complete": judge_call()},
                    tools=entries,
                    on_answer=lambda *_, bar=bar: bar.update(),
                    **options,
                )
            )
    _show_runs(evals.together(*made), as_json)
    if any(bool((each.frame["outcome"] == "failed").any()) for each in made):
        raise typer.Exit(1)


@eval_app.command("list")
def list_evals(
    name: Annotated[
        str | None, typer.Argument(help="ftjob-… or eval_… to list its runs; default all evals.")
    ] = None,
    here: Annotated[
        bool, typer.Option("--here", help="List only local runs, without a request.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List evals and local runs, or the runs of one job or eval."""
    from rftkit import connect
    from rftkit.evals import runs, saved_runs

    if name is not None:
        found = [_run_line(each.run, each.num_items) for each in runs.find_runs(connect(), name)]
        show(found, _listed(found), as_json)
        return
    made = [_run_line(each.run, len(each.columns["row"])) for each in saved_runs.kept_runs()]
    listed: list[dict[str, Any]] = [] if here else [
        {"eval": each.id, "name": each.name, "created_at": each.created_at}
        for each in connect().evals.list(limit=100, order="desc")
    ]  # fmt: skip
    text = "\n\n".join(["evals", _listed(listed)]) + "\n\n" if not here else ""
    show({"evals": listed, "made_here": made}, f"{text}made here\n\n{_listed(made)}", as_json)


@eval_app.command("show")
def show_eval(names: Names, dump: Dump = None, as_json: Json = False) -> None:
    """Show the reward and pass rate of each run."""
    _show_runs(_samples(names, dump), as_json)


@eval_app.command("compare")
def compare_evals(
    names: Names,
    dump: Dump = None,
    baseline: Annotated[
        str | None, typer.Option(help="Label of the run to compare with; default Step 0.")
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(help="Label of the run that slices compare; default the recommended one."),
    ] = None,
    cut: Annotated[
        list[str] | None,
        typer.Option("--slice", metavar="KEY", help="Compare the rows by this key; repeatable."),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="Treat differences smaller than this as equal.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    csv: Annotated[
        Path | None, typer.Option(help="Write the rows of all runs to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs row by row: which is best, and how certain it is."""
    from rftkit import evals

    if csv is not None:
        check_output(csv, [*(each for each in names if Path(each).is_file()), dump])
    samples = _samples(names, dump)
    found = evals.compare(
        samples, baseline=baseline, after=after, slices=cut or (), margin=margin, seed=seed
    )
    if csv is not None:
        write_whole(csv, cells(found.rows).to_csv(index=False))
    show(found.to_dict(), _comparison_text(found), as_json)


def _check_model(client: OpenAI, name: str) -> None:
    """Refuse a model that the service does not have, before any row is sent."""
    import openai

    try:
        client.models.retrieve(name)
    except openai.NotFoundError:
        known = [each.id for each in client.models.list()]
        if name not in known:
            raise NotFoundError(
                f"there is no model {name!r}; {nearest_name(name, known)}"
            ) from None
    except openai.APIStatusError:  # no such route: requests will report what is wrong
        return


def _samples(names: Sequence[str], dump: Path | None) -> Samples:
    from rftkit import connect, evals
    from rftkit.evals.saved_runs import LOCAL_PREFIX

    if dump is not None:
        return evals.from_dump(dump, *names)
    if all(name.startswith(LOCAL_PREFIX) for name in names):
        return evals.kept(*names)
    return evals.fetch(connect(), *names, progress=True)


def _show_runs(samples: Samples, as_json: bool) -> None:
    from rftkit import evals

    found = evals.compare(samples)
    value = {"runs": found.to_dict()["runs"], "ids": [run.id for run in samples.runs]}
    lines = [f"{run.label}  {run.id}" for run in samples.runs]
    show(value, "\n".join([_run_table(found), "", *lines, *_notes(found)]), as_json)


def _run_line(run: Any, num_items: int | None) -> dict[str, Any]:
    fields = {name: getattr(run, name) for name in ("id", "label", "status", "model", "created_at")}
    return {**fields, "samples": num_items}


def _listed(lines: Sequence[dict[str, Any]]) -> str:
    """A table for people, who read dates; programs get the seconds."""
    from rftkit.views.facts import moment

    return table([{**line, "created_at": moment(line["created_at"])} for line in lines])


def _comparison_text(found: Comparison) -> str:
    from rftkit.evals.job_names import named_jobs

    parts = [_run_table(found)]
    if jobs := named_jobs(found.samples.runs):
        parts.append("\n".join(f"{name}: {job_id}" for name, job_id in jobs.items()))
    if found.jobs:
        parts.append(found.jobs.sentence)
    if found.pairs:
        parts.append("\n".join(pair.sentence for pair in found.pairs))
    if found.choice:
        parts.append(found.choice.sentence)
    for cut in found.slices:
        lines = [
            {
                cut.by: each.value,
                "rows": each.num_rows,
                "difference": each.difference.value,
                "low": each.difference.low,
                "high": each.difference.high,
                "p": each.p,
                "": each.verdict,
            }
            for each in cut.slices
        ]
        title = f"{cut.after} minus {cut.before}, by {cut.by}"
        parts.append("\n".join([title, table(lines), *cut.notes]))
    if found.notes:
        parts.append("\n".join(found.notes))
    return "\n\n".join(parts)


def _run_table(found: Comparison) -> str:
    lines = [
        {
            "run": run.label,
            "reward": run.reward.value,
            "low": run.reward.low,
            "high": run.reward.high,
            "passed": run.pass_rate.value,
            **{name: estimate.value for name, estimate in run.graders.items()},
            "rows": run.num_rows,
            "samples": run.num_samples,
            "failed": run.num_failed,
            "unscorable": run.num_unscorable,
            "cut off": run.num_truncated,
            "tokens": run.tokens.value,
        }
        for run in found.runs
    ]
    return table(lines)


def _notes(found: Comparison) -> list[str]:
    return ["", *found.notes] if found.notes else []
