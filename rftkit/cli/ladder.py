"""The command `rftkit ladder`; see `rftkit.cli`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rftkit.cli.console import (
    Format,
    Json,
    Pairs,
    parse_pairs,
    parse_values,
    print_progress,
    show,
    table,
)
from rftkit.errors import InputError
from rftkit.wholefile import check_output

if TYPE_CHECKING:
    from rftkit.ladder import Ladder

__all__ = ["ladder", "ladder_text", "write_page"]


def ladder(
    data: Annotated[
        str,
        typer.Argument(help="JSONL file of training rows, a dataset folder, or a bundled dataset."),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="The base model.")],
    grader: Annotated[
        Path | None,
        typer.Option("--grader", "-g", help="JSON file of the grader; a folder has its own."),
    ] = None,
    response_format: Format = None,
    rungs: Annotated[
        str, typer.Option(metavar="NAMES", help="The ways to compare with the base model.")
    ] = "prompt,supervised,dpo,reinforcement",
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="The HTML page; a .json and an .answers.jsonl file next to it are used to resume.",
        ),
    ] = Path("ladder.html"),
    valid: Annotated[Path | None, typer.Option(help="JSONL file of validation rows.")] = None,
    test: Annotated[
        Path | None, typer.Option(help="JSONL file of test rows, which compare the rungs.")
    ] = None,
    reflection_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Let this model rewrite the system text of the prompt."),
    ] = None,
    hyperparameters: Annotated[
        Pairs | None,
        typer.Option(
            "--hyperparameter",
            "-p",
            metavar="RUNG.NAME=VALUE",
            help="A hyperparameter of a rung's job, such as supervised.n_epochs=2; the rungs are "
            "supervised, dpo, reinforcement and supervised_reinforcement. Repeatable.",
        ),
    ] = None,
    metadata: Annotated[
        Pairs | None, typer.Option(metavar="NAME=VALUE", help="Stored with every job; repeatable.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Answers to each test row.", min=1)] = 1,
    temperature: Annotated[float, typer.Option(help="0 gives the likeliest answer.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the jobs and of the prompt search.")] = 1,
    as_json: Json = False,
) -> None:
    """Compare a better prompt, supervised, dpo and RFT.

    Each of these rungs ends in answers to the same test rows. If both supervised and reinforcement
    are chosen, RFT is also run from the supervised model. Finished rungs are kept: run the same
    command to resume. The page shows which rung was worth it.
    """
    from rftkit import connect, jobs
    from rftkit import ladder as room

    found = room.open_data(
        data, grader=grader, response_format=response_format, valid=valid, test=test
    )
    state_path = out.with_suffix(".json")
    for path in (out, state_path, room.answers_path(state_path)):
        check_output(path, found.files)
    plan = room.Plan(
        model=model,
        seed=seed,
        temperature=temperature,
        max_completion_tokens=max_tokens,
        samples=samples,
        hyperparameters=_by_rung(hyperparameters),
        metadata=parse_pairs(metadata),
        reflection_model=reflection_model,
    )
    chosen = room.rungs_for([each.strip() for each in rungs.split(",") if each.strip()])
    try:
        state = room.climb(
            connect(),
            found,
            plan,
            chosen,
            state_path,
            on_progress=print_progress,
            follow=jobs.Progress,
        )
    except KeyboardInterrupt:
        print_progress("\nA job that was started continues. To resume, run the same command again.")
        raise
    made = room.read(state)
    page = write_page(state_path, out)
    show({**made.to_dict(), "page": str(page)}, f"{ladder_text(made)}\n\n{page}", as_json)
    if any(each.error for each in made.rungs):
        raise typer.Exit(1)


def ladder_text(made: Ladder) -> str:
    """The rungs as a table, and which was worth it."""
    parts = dict.fromkeys(name for run in made.comparison.runs for name in run.graders)
    names = ["rung", "reward", *parts, "difference from base", "low", "high", "verdict"]
    names += ["seconds in all", "tokens in all"]
    lines = made.records()
    rows = [{name: line.get(name) for name in names} for line in lines]
    notes = [f"{line['rung']}: {line['note']}" for line in lines if line["note"]]
    return "\n".join([table(rows), "", *notes, made.sentence])


def write_page(state_path: Path, out: Path) -> Path:
    """The page of a ladder, from its state file."""
    from rftkit import reports

    return reports.run("report_ladder", out, ladder=str(state_path.resolve()))


def _by_rung(pairs: Pairs | None) -> dict[str, dict[str, Any]]:
    from rftkit.ladder import METHODS

    found: dict[str, dict[str, Any]] = {}
    for name, value in parse_values(pairs).items():
        rung, _, hyperparameter = name.partition(".")
        if rung not in METHODS or not hyperparameter:
            raise InputError(
                f"expected RUNG.NAME=VALUE such as supervised.n_epochs=2, found "
                f"{name}={json.dumps(value)}; the rungs are {', '.join(METHODS)}"
            )
        found.setdefault(rung, {})[hyperparameter] = value
    return found
