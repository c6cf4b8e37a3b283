"""The command `rftkit report`; see `rftkit.cli`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from rftkit.cli.console import Json, Pairs, print_progress, show
from rftkit.errors import InputError

__all__ = ["PARAMETER", "ParameterCommand", "report"]

PARAMETER = ("-p", "--parameter")
"""The option that is followed by a name and a value."""


class ParameterCommand(TyperCommand):
    """Takes `-p name value`, which typer cannot express for an option that may be repeated."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join each `-p name value` to one word; `-p name=value` is one already."""
        return super().parse_args(ctx, _joined(args))


def report(
    notebook: Annotated[
        str, typer.Argument(help="A path, or the name of a bundled notebook, such as report_job.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The HTML file to write; for a sweep, the folder."),
    ] = None,
    parameters: Annotated[
        Pairs | None,
        typer.Option(
            *PARAMETER, metavar="NAME VALUE", help="A parameter of the notebook; repeatable."
        ),
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(metavar="GRID.YAML", help="Write one report for each setting, and an index."),
    ] = None,
    csv: Annotated[
        bool, typer.Option("--csv", help="Also write the full tables as CSV files.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(help="Reports of a sweep to run at a time; default one per core.", min=1),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a notebook and save it as one offline HTML file.

    With --sweep, write one file for each setting of a grid, such as `seed: [1, 2, 3]`, and an index
    that compares them. Run the command again to resume a sweep. A grid with `job:` trains a job
    for each setting first.
    """
    from rftkit import reports

    values = reports.read_values(notebook, _pairs(parameters or []))
    stem = reports.notebook_path(notebook).stem
    if sweep is None:
        target = out or Path(f"{stem}.html")
        page = reports.run(notebook, target, csv=csv, parameters=values).resolve()
        show({"page": str(page), "figures": reports.read_summary(page)}, str(page), as_json)
        return
    folder = out or Path(f"{stem}-{sweep.stem}")
    made = _sweep(notebook, sweep, folder, values, csv, processes, as_json)
    lines = [
        {"page": run.page, "status": run.status, "error": run.error, "figures": run.figures}
        for run in made.runs
    ]
    show({"index": str(made.index.resolve()), "runs": lines}, str(made.index.resolve()), as_json)
    raise typer.Exit(1 if made.failed else 0)


def _sweep(
    notebook: str,
    grid: Path,
    folder: Path,
    values: dict[str, Any],
    csv: bool,
    processes: int | None,
    as_json: bool,
) -> Any:
    from rftkit import connect, reports
    from rftkit.reports.grid import read_grid

    options: dict[str, Any] = {
        "csv": csv, "processes": processes, "parameters": values,
        "on_progress": partial(print_progress, to_stderr=as_json),
    }  # fmt: skip
    if read_grid(grid).job is None:
        return reports.sweep(notebook, grid, folder, **options)
    return reports.sweep_jobs(connect(), notebook, grid, folder, **options)


def _joined(args: list[str]) -> list[str]:
    joined, rest = [], iter(args)
    for word in rest:
        joined.append(word)
        if word == "--":
            break
        if word in PARAMETER and (name := next(rest, None)) is not None:
            value = None if "=" in name else next(rest, None)
            joined.append(name if value is None else f"{name}={value}")
    return [*joined, *rest]


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    for word in words:
        if "=" not in word:
            raise InputError(f"-p {word} has no value; type -p {word} VALUE")
    return [(name, value) for name, _, value in (word.partition("=") for word in words)]
