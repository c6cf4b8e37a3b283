"""The commands `rftkit dataset`; see `rftkit.cli`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rftkit.cli.console import (
    PLAIN,
    Format,
    Grader,
    Json,
    Pairs,
    parse_values,
    show,
    table,
)
from rftkit.errors import InputError
from rftkit.safetext import cells
from rftkit.wholefile import check_output, write_whole

if TYPE_CHECKING:
    from rftkit.datasets import Columns, GradedGroup

__all__ = ["dataset_app"]

dataset_app = typer.Typer(help="Convert, split, sample and profile datasets.", **PLAIN)

Data = Annotated[
    Path,
    typer.Argument(help="JSONL, CSV or TSV (also .gz, .zst), Parquet, a folder, a name, or hf://…"),
]
Seed = Annotated[int, typer.Option(help="Change it to draw different rows.")]
Stratify = Annotated[
    str | None, typer.Option(metavar="KEY", help="Keep the share of each value of this key.")
]


@dataset_app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="JSONL, CSV or TSV (also .gz, .zst), Parquet, or a folder; for --to preference "
            "also a job or an eval run: ftjob-…, evalrun_…, localrun_…"
        ),
    ],
    target: Annotated[Path, typer.Argument(help="The .jsonl file to write.")],
    to: Annotated[
        Literal["rft", "supervised", "preference"],
        typer.Option(help="The form of the rows to write."),
    ] = "rft",
    grader: Annotated[
        Path | None,
        typer.Option(
            "--grader",
            "-g",
            help="JSON file of the grader: it names the keys of the answer, or grades answers.",
        ),
    ] = None,
    response_format: Format = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="For a table: the prompt, as in 'Ticket: {ticket}'; \\n begins a line.",
        ),
    ] = None,
    answer: Annotated[
        str | None, typer.Option(metavar="COLUMNS", help="For a table: the columns of the answer.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="For a table: instructions to the model.")
    ] = None,
    keep_keys: Annotated[
        bool,
        typer.Option(
            "--keep-keys", help="Keep the other keys in supervised rows, where OpenAI refuses them."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change.")] = False,
    as_json: Json = False,
) -> None:
    """Turn files into RFT rows, supervised rows or preference rows.

    To rft: chats, prompts with answers, eval items and preference rows; the last assistant message
    becomes the reference answer.

    To supervised: the reference answer becomes the last assistant message.

    To preference: the best and the worst graded answer to each prompt, from a job's rollouts, an
    eval run, or a file of graded answers ({"item": …, "sample": …, "reward": …}).

    For a table such as tickets.csv, say which columns are the prompt and the answer: --prompt
    "Ticket: {ticket}" --answer category,reason. The exit status is 1 if lines were left out. Each
    one is named.
    """
    from rftkit import datasets

    check_output(target, [path for path in (Path(source), grader, response_format) if path])
    spec = datasets.read_json(grader) if grader else None
    answer_format = datasets.read_json(response_format) if response_format else None
    target_path = None if dry_run else target
    if to == "preference":
        pairs = datasets.preferences(
            _groups(source, spec, answer_format), target_path, source=source
        )
        show(asdict(pairs), str(pairs), as_json)
        raise typer.Exit(0 if pairs.num_rows else 1)
    made = datasets.convert(
        source,
        target_path,
        to=to,
        grader=spec,
        response_format=answer_format,
        keep_keys=keep_keys,
        columns=_columns(source, prompt, answer, system),
    )
    show(asdict(made), str(made), as_json)
    raise typer.Exit(1 if made.num_refused else 0)


@dataset_app.command()
def split(
    source: Data,
    folder: Annotated[Path, typer.Argument(help="The folder for train, valid and test.")],
    shares: Annotated[
        Pairs | None,
        typer.Option(
            "--share",
            metavar="PART=SHARE",
            help="The share of a part; repeatable. Default train=0.8 valid=0.1 test=0.1.",
        ),
    ] = None,
    seed: Seed = 1,
    stratify: Annotated[
        str,
        typer.Option(
            metavar="KEY|auto|none",
            help="Keep the share of each value of this key; auto: the first key with few values.",
        ),
    ] = "auto",
    group: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Keep rows with equal values of this key in one part."),
    ] = None,
    keep_repeats: Annotated[
        bool, typer.Option("--keep-repeats", help="Keep repeated prompts, all in one part.")
    ] = False,
    near: Annotated[
        bool, typer.Option("--near", help="Also keep near-duplicates in one part.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Split a dataset so that nothing leaks from one part to another."""
    from rftkit import datasets

    made = datasets.split(
        source,
        folder,
        shares=_shares(shares),
        seed=seed,
        stratify=None if stratify == "none" else stratify,
        group=group,
        deduplicate=not keep_repeats,
        near_duplicates=near,
    )
    show(asdict(made), str(made), as_json)


@dataset_app.command()
def sample(
    source: Data,
    target: Annotated[Path, typer.Argument(help="The .jsonl file to write.")],
    rows: Annotated[int, typer.Option(help="The number of rows to draw.")],
    seed: Seed = 1,
    stratify: Stratify = None,
) -> None:
    """Draw rows into a new file."""
    from rftkit import datasets

    count = datasets.sample(source, target, rows, seed=seed, stratify=stratify)
    print(f"{count:,} rows, seed {seed}: {target}")


@dataset_app.command()
def profile(
    source: Data,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a CSV file with one line per row.")
    ] = None,
    grader: Grader = None,
    response_format: Format = None,
    model: Annotated[str | None, typer.Option(help="Count the tokens of this model.")] = None,
) -> None:
    """Show the length, labels and hash of every row."""
    from rftkit import datasets

    if out is not None:
        check_output(out, [source, grader, response_format])
        if source.is_dir() and out.expanduser().resolve().parent == source.resolve():
            raise InputError(
                f"{out} is in the folder that is profiled, where it would be taken for data of "
                "the dataset; write it somewhere else"
            )
    frame = datasets.profile(
        source,
        grader=datasets.read_json(grader) if grader else None,
        response_format=datasets.read_json(response_format) if response_format else None,
        model=model,
    )
    if frame.empty or not frame["usable"].any():
        raise InputError(f"{source} has no row that can be used; type: rftkit check {source}")
    if out is not None:
        write_whole(out, cells(frame).to_csv())
    described = frame.drop(columns=["line", "usable"]).select_dtypes("number").describe()
    names = ("count", "mean", "min", "50%", "max")
    print(table([{"column": key, **{n: described[key][n] for n in names}} for key in described]))
    if "counted_by" in frame.attrs:
        print(f"tokens by {frame.attrs['counted_by']}")


def _columns(
    source: str, prompt: str | None, answer: str | None, system: str | None
) -> Columns | None:
    from rftkit import datasets
    from rftkit.datasets.columns import answer_names
    from rftkit.datasets.proposals import records_of

    if prompt is None:
        if answer is not None or system is not None:
            raise InputError(
                "--answer and --system need --prompt, such as --prompt 'Ticket: {ticket}'"
            )
        return None
    with datasets.open(source) as rows:
        known = list(dict.fromkeys(name for record in records_of(rows) for name in record))
    said, system_text = (text.replace("\\n", "\n") for text in (prompt, system or ""))
    return datasets.Columns(said, answer_names(answer or "", known), system_text)


def _groups(
    source: str, spec: dict[str, Any] | None, answer_format: dict[str, Any] | None
) -> Iterable[GradedGroup]:
    """The graded answers of a job, an eval run or a file."""
    from rftkit import connect, datasets, evals, jobs
    from rftkit.client import judge_call

    if Path(source).exists() or not source.startswith(("ftjob-", "eval", "localrun_")):
        return datasets.read_groups(
            source, grader=spec, response_format=answer_format, complete=judge_call()
        )
    if spec is not None:
        raise InputError(f"-g grades the answers of a file; those of {source} have their rewards")
    if source.startswith("ftjob-"):
        client = connect()
        return datasets.groups_of_rollouts(jobs.all_rollouts(client, jobs.find(client, source)))
    here = source.startswith("localrun_")
    return datasets.groups_of_samples(
        evals.kept(source) if here else evals.fetch(connect(), source)
    )


def _shares(pairs: Pairs | None) -> dict[str, float] | None:
    if not pairs:
        return None
    values = parse_values(pairs)
    if not all(isinstance(value, int | float) for value in values.values()):
        raise InputError(f"expected PART=SHARE such as train=0.9, found {' '.join(pairs)}")
    return values
