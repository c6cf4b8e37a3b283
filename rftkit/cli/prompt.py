"""The commands `rftkit prompt …`; see `rftkit.cli`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rftkit.cli.console import PLAIN, Format, Json, print_progress, show, table
from rftkit.wholefile import check_output

__all__ = ["prompt_app"]

prompt_app = typer.Typer(help="Improve the prompt of a model, without training.", **PLAIN)


@prompt_app.callback()
def prompts() -> None:
    """Improve the prompt of a model, without training."""


@prompt_app.command()
def optimize(
    data: Annotated[
        str,
        typer.Argument(help="JSONL file of training rows, a dataset folder, or a bundled dataset."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The prompt file to write.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model to write it for.")],
    grader: Annotated[
        Path | None,
        typer.Option("--grader", "-g", help="JSON file of the grader; a folder has its own."),
    ] = None,
    response_format: Format = None,
    valid: Annotated[
        Path | None, typer.Option(help="JSONL file of validation rows, which decide on the prompt.")
    ] = None,
    reflection_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Let this model rewrite the system text; it is called at "
            "RFTKIT_JUDGE_BASE_URL, or else on the model's own service.",
        ),
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="Prompt file to start from; default the rows' own prompt.")
    ] = None,
    candidates: Annotated[int, typer.Option(help="Sets of examples to try.", min=1)] = 8,
    train_rows: Annotated[
        int, typer.Option(help="Training rows that each candidate answers.", min=2)
    ] = 32,
    finalists: Annotated[
        int, typer.Option(help="Candidates that answer the validation rows.", min=1)
    ] = 3,
    temperature: Annotated[float, typer.Option(help="0 gives the likeliest answer.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 256,
    seed: Annotated[int, typer.Option(help="Change it to draw different examples.")] = 1,
    as_json: Json = False,
) -> None:
    """Find a better system text and better examples for a model.

    Candidates are tried on training rows. The best few answer the validation rows, which decide.
    The prompt file has the best one, and every candidate with its interval. Pass it to `job create`
    or `eval run` with --prompt, or load it in the playground. Every answer is kept in a
    .search.jsonl file next to it: after an interruption, run the same command to resume.
    """
    from rftkit import connect, ladder, settings
    from rftkit.client import judge_client
    from rftkit.datasets.writing import sha256
    from rftkit.prompts import read_prompt

    found = ladder.open_data(
        data, grader=grader, response_format=response_format, valid=valid, needs_test=False
    )
    kept_path = out.with_suffix(".search.jsonl")
    for path in (out, kept_path):
        check_output(path, [*found.files, prompt])
    start = read_prompt(prompt) if prompt else None
    train, held_out = ladder.rows_of(found.train), ladder.rows_of(found.valid)
    options: dict[str, Any] = {"temperature": temperature, "max_completion_tokens": max_tokens}
    budget = ladder.Budget(candidates=candidates, train_rows=train_rows, finalists=finalists)
    purpose = {
        "training rows": sha256(found.train),
        "validation rows": sha256(found.valid),
        "grader": found.grader,
        "response format": found.response_format,
        "model": model,
        "service": settings.remote()[0],
        "judge": settings.judge().base_url,
        "reflection model": reflection_model,
        "starting prompt": asdict(start) if start else None,
        **options,
        **asdict(budget),
        "seed": seed,
    }
    kept = ladder.open_kept(kept_path, purpose, print_progress)
    task = ladder.Task(connect(), found.grader, found.response_format, options, kept=kept)
    try:
        search = ladder.optimize_prompt(
            task,
            model,
            train,
            held_out,
            start=start,
            reflect=(
                ladder.reflect_with(judge_client(), reflection_model) if reflection_model else None
            ),
            budget=budget,
            seed=seed,
            on_progress=print_progress,
        )
    except KeyboardInterrupt:
        print_progress(
            f"\nThe answers so far are in {kept_path}. To resume, run the same command again."
        )
        raise
    search.write(out, model=model, data=found.name)
    value = {
        "prompt": str(out),
        "chosen": search.chosen,
        "candidates": [each.to_dict() for each in search.candidates],
        "seconds": search.seconds,
        "tokens": search.tokens,
    }
    lines = [table(search.records()), "", search.sentence, f"written to {out}"]
    show(value, "\n".join(lines), as_json)
