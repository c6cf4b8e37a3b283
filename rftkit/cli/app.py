"""The command `rftkit`: thin commands over the rooms, nothing else.

A command parses its arguments, calls one room and prints the result. The exit status is 0 for
success, 1 for a failure, 2 for unusable arguments and 130 for an interruption. Heavy imports stay
inside the commands, so that `rftkit --help` is quick.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

import rftkit
from rftkit import settings
from rftkit.cli.check import check
from rftkit.cli.console import (
    PLAIN,
    Format,
    Json,
    make_printable,
    print_json,
    print_progress,
    show,
    table,
)
from rftkit.cli.datasets import dataset_app
from rftkit.cli.evals import eval_app
from rftkit.cli.graders import grader_app
from rftkit.cli.jobs import job_app
from rftkit.cli.ladder import ladder as ladder_command
from rftkit.cli.models import models_app
from rftkit.cli.prompt import prompt_app
from rftkit.cli.reports import PARAMETER, ParameterCommand, report
from rftkit.cli.troubles import message_of
from rftkit.errors import InputError, MissingExtraError, RftkitError
from rftkit.safetext import redacted

__all__ = ["app", "main"]

LAB_FOLDER = Path("rftkit-notebooks")
ORDER = (
    "demo", "serve", "lab", "check", "dataset", "grade", "prompt", "job", "grader", "eval",
    "ladder", "report", "import", "models",
)  # fmt: skip


class LabCommand(TyperCommand):
    """Takes everything after `--` as options for JupyterLab, with or without a folder before it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the default folder where the words before `--` do not name one."""
        before = args[: args.index("--")] if "--" in args else None
        if before is not None and all(word.startswith("-") for word in before):
            args = [*before, str(LAB_FOLDER), *args[len(before) :]]
        return super().parse_args(ctx, args)


class FullArguments(TyperGroup):
    """Lists commands in the order of work, and refuses an empty argument, which a shell script
    passes where a variable was never set.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the README."""
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; only the value of a report's parameter may be empty."""
        before = args[: args.index("--")] if "--" in args else args
        for place, word in enumerate(before):
            is_value = args[0] == "report" and before[place - 2] in PARAMETER
            if not is_value and (not word or _EMPTY_OPTION.fullmatch(word)):
                after = " ".join(before[:place])
                raise InputError(
                    f"an argument is empty: rftkit {after} {word or repr(word)}; is a variable of "
                    "your shell not set?"
                )
        return super().parse_args(ctx, args)


_EMPTY_OPTION = re.compile(r"--[a-z][a-z-]*=")
app = typer.Typer(cls=FullArguments, **PLAIN)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"rftkit {rftkit.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Reinforcement fine-tuning with OpenAI's API, on this machine or on a hosted service."""


app.command()(check)
app.add_typer(dataset_app, name="dataset")
app.add_typer(eval_app, name="eval")
app.add_typer(grader_app, name="grader")
app.add_typer(job_app, name="job")
app.add_typer(models_app, name="models")
app.add_typer(prompt_app, name="prompt")
app.command("ladder")(ladder_command)
app.command(cls=ParameterCommand)(report)


@app.command()
def demo(
    fast: Annotated[
        bool, typer.Option("--fast", help="Train a toy model on a toy task, in half a minute.")
    ] = False,
    ladder: Annotated[
        bool,
        typer.Option("--ladder", help="Compare a prompt, supervised training, and then RFT."),
    ] = False,
    dataset: Annotated[
        Literal["security_review", "contract_facts"], typer.Option(help="The task to train on.")
    ] = "security_review",
    seed: Annotated[int, typer.Option(help="Change it to get a different run.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("reports"),
    as_json: Json = False,
) -> None:
    """Train a small model, test it, and write a report."""
    from rftkit.cli.demo import run
    from rftkit.cli.demo_ladder import run_ladder

    name = "tiny_copy" if fast else dataset
    story = run_ladder if ladder else run
    result = story(name, seed=seed, out=out, on_progress=partial(print_progress, to_stderr=as_json))
    if as_json:
        print_json(result)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Default 8642 or the next free one; 0 for any.")
    ] = None,
    idle_minutes: Annotated[
        float | None, typer.Option(help="Stop after so many minutes without a request or a job.")
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Show whether a server is running.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the running server.")] = False,
    engine: Annotated[
        Literal["torch", "tinker"] | None,
        typer.Option(
            help="Train on this machine (torch) or on a Tinker server. Remembered for later starts."
        ),
    ] = None,
    tinker_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Address of the Tinker server.")
    ] = None,
    tinker_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The model to train, by its name on that server."),
    ] = None,
    tinker_tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="The model's tokenizer and config on this machine, if NAME is not a folder here.",
        ),
    ] = None,
    routes: Annotated[
        bool, typer.Option("--routes", help="List which methods of the SDK are supported.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start the local platform; show whether it is running, or stop it."""
    from rftkit import client

    if routes:
        table = (Path(__file__).parents[1] / "server" / "methods.md").read_text()
        show({"markdown": table}, table.rstrip(), as_json)
        return
    if status or stop:
        server = client.stop_server() if stop else client.serve_status()
        state = "stopped" if stop else "running"
        if server is None:
            show(None, "The server is not running. Start it with: rftkit serve", as_json)
        else:
            line = f"{state}: {server.base_url}  process {server.pid}  {server.home}"
            found = {"base_url": server.base_url, "pid": server.pid, "home": str(server.home)}
            problems = [] if stop else list(server.problems)
            show({**found, "problems": problems}, "\n".join([line, *problems]), as_json)
        raise typer.Exit(0 if server or stop else 1)
    for package in client.NEEDED:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "local")
    command = [sys.executable, "-m", "rftkit.server", "--host", host]
    command += ["--port", str(port)] if port is not None else []
    given = {
        "--idle-minutes": idle_minutes,
        "--engine": engine,
        "--tinker-url": tinker_url,
        "--tinker-model": tinker_model,
        "--tinker-tokenizer": tinker_tokenizer,
    }
    for option, value in given.items():
        command += [option, str(value)] if value is not None else []
    os.execve(sys.executable, command, settings.child_environment())  # signals go straight to it


@app.command(cls=LabCommand)
def lab(
    folder: Annotated[Path, typer.Argument(help="The folder for your copies.")] = LAB_FOLDER,
    options: Annotated[
        list[str] | None,
        typer.Argument(help="After --, options for JupyterLab, such as --no-browser."),
    ] = None,
) -> None:
    """Start the platform and JupyterLab on copies of the notebooks."""
    from rftkit.cli.lab import run_lab

    raise typer.Exit(run_lab(folder, options or []))


@app.command()
def grade(
    grader: Annotated[Path, typer.Argument(help="JSON file of the grader.")],
    data: Annotated[
        Path,
        typer.Argument(
            help='JSONL lines {"item": …, "sample": "an answer"}, or a table with output_text.'
        ),
    ],
    response_format: Format = None,
    as_json: Json = False,
) -> None:
    """Grade answers, or the reference answers in dataset rows."""
    from dataclasses import asdict

    from rftkit import compile_grader, datasets, evals
    from rftkit.client import embedding_call, judge_call

    spec = datasets.read_json(grader)
    answer_format = datasets.read_json(response_format) if response_format else None
    # Every line is checked before the first is graded, and none stays in memory.
    checked = datasets.each_sample(data, response_format=answer_format)
    num_cut = sum(sample.truncated for sample, _ in checked)
    with compile_grader(
        spec, purpose="eval", complete=judge_call(), embed=embedding_call()
    ) as compiled:
        grades = compiled.grade_many(datasets.each_sample(data, response_format=answer_format))
    if as_json:
        print_json([asdict(each) for each in grades])
    else:
        lines = [
            {
                "answer": number,
                "reward": each.reward,
                **each.sub_rewards,
                "outcome": each.outcome,
                "errors": " ".join(each.errors),
            }
            for number, each in enumerate(grades, 1)
        ]
        means = evals.score(grades) | {"cut off": num_cut}
        print(f"{table(lines)}\n\nmeans\n{table([means])}")
    raise typer.Exit(any(each.outcome == "failed" for each in grades))


@app.command("import")
def import_account(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Files to open here: a dump, JSON, JSONL or CSV from the API, results of "
            "promptfoo or logs of Inspect."
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="openai|azure|URL", help="The account to save.")
    ] = None,
    dump: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Save into this folder, and do not open it here."),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="KINDS", help="Save only these kinds, such as files,jobs.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DATE", help="Leave out objects made before this day, such as 2026-05-01."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")
    ] = False,
    verify: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Check a dump against its manifest.")
    ] = None,
    show: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Describe the contents of a dump.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Check whether each imported job and grader runs here."),
    ] = False,
    to: Annotated[
        Literal["promptfoo"] | None,
        typer.Option(
            metavar="promptfoo",
            help="Write the evals of a dump as promptfoo configs; give both folders, DUMP OUT.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Save a hosted account, and open it in the local platform.

    Imported objects keep their ids and are read-only. Run the command again to resume it, or to
    fetch what is new.

    The key is read from OPENAI_API_KEY, or from AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_API_KEY.
    """
    from rftkit.cli import imports
    from rftkit.cli.account import command

    if to:
        raise typer.Exit(imports.leave(paths or [], as_json))
    if check:
        raise typer.Exit(imports.check(as_json))
    if paths:
        if source or dump or verify or show or only or since:
            raise InputError("give paths to open, or options that save an account, not both")
        raise typer.Exit(imports.open_here(paths, dry_run=dry_run, as_json=as_json))
    if source and dump is None and not dry_run:
        options = {"only": only, "since": since}
        raise typer.Exit(imports.fetch_and_open(source, as_json=as_json, **options))
    status = command(
        source=source,
        dump=dump,
        only=only,
        since=since,
        dry_run=dry_run,
        verify=verify,
        show=show,
        as_json=as_json,
    )
    raise typer.Exit(status)


def main() -> None:
    """Run the command line; an expected error is one message and an exit status, no traceback."""
    make_printable()
    try:
        app(prog_name="rftkit")
    except RftkitError as error:
        _fail(str(error), 2 if isinstance(error, InputError) else 1)
    except Exception as error:
        from rftkit.client import api_message

        if (message := api_message(error) or message_of(error)) is None:
            raise
        _fail(message, 1)


def _fail(message: str, status: int) -> None:
    print(f"rftkit: {redacted(message, settings.keys())}", file=sys.stderr)
    sys.exit(status)
