"""The commands `rftkit check` and `rftkit dataset`; see `rftkit.cli`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rftkit.cli.console import (
    PLAIN,
    Format,
    Json,
    Pairs,
    parse_values,
    print_json,
    rewrite_line,
    show,
    table,
)
from rftkit.errors import InputError
from rftkit.safetext import cells
from rftkit.wholefile import check_output, write_whole

if TYPE_CHECKING:
    from rftkit.datasets import Check, Columns, Finding, GradedGroup, Preview
    from rftkit.graders import Audit

__all__ = ["check", "dataset_app"]

dataset_app = typer.Typer(help="Convert, split, sample and profile datasets.", **PLAIN)

Data = Annotated[
    Path,
    typer.Argument(help="JSONL, CSV or TSV (also .gz, .zst), Parquet, a folder, or a name."),
]
Grader = Annotated[Path | None, typer.Option("--grader", "-g", help="JSON file of the grader.")]
Seed = Annotated[int, typer.Option(help="Change it to draw different rows.")]
Stratify = Annotated[
    str | None, typer.Option(metavar="KEY", help="Keep the shares of this key's values.")
]

MAX_ANSWER_TOKENS = 256
PROFILED = 20_000  # rows whose charts a page shows


def check(
    data: Annotated[
        Path | None,
        typer.Argument(help="Training rows: JSONL, CSV, TSV (.gz, .zst), Parquet; or a folder."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A folder, or a dataset that comes with rftkit: security_review."
        ),
    ] = None,
    method: Annotated[
        Literal["reinforcement", "supervised", "dpo"] | None,
        typer.Option(help="Require rows for this method; default the one that most rows fit."),
    ] = None,
    valid: Annotated[Path | None, typer.Option(help="The file of validation rows.")] = None,
    test: Annotated[
        Path | None, typer.Option(help="The file of test rows, for after training.")
    ] = None,
    grader: Grader = None,
    response_format: Format = None,
    model: Annotated[
        str | None,
        typer.Option(help="Count tokens for this model; with a grader, also sample answers."),
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows to sample answers for; 0 for none.", min=0)] = 16,
    completions: Annotated[int, typer.Option(help="Completions to sample per row.", min=2)] = 8,
    useful: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write the rows with a training signal to a new file."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip the search for near-duplicates.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Also write an HTML page.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a dataset: rows, rewards, and what the model can learn.

    It names the method that the rows fit: reinforcement, supervised or dpo.

    The exit status is 1 if a job with this data would fail.
    """
    from rftkit import datasets

    spec = datasets.read_json(grader) if grader else None
    answer_format = datasets.read_json(response_format) if response_format else None
    if dataset:
        if data or valid or test:
            raise InputError("use either --dataset or the paths of files, not both")
        data = Path(dataset)
    lacking = ""
    if data is not None:
        given = datasets.load(data)
        if given.missing and given.train != data:
            lacking = f"{given.name} has no {' and no '.join(given.missing)}"
        data, valid, test = given.train, valid or given.valid, test or given.test
        spec, answer_format = spec or given.grader, answer_format or given.response_format
    if data is None:
        raise InputError(
            "there is nothing to check; type: rftkit check DATA, or rftkit check --dataset NAME"
        )
    for out in filter(None, (html, useful)):
        check_output(out, [data, valid, test, grader, response_format])
    if html and useful:
        check_output(useful, [html])
    if useful and not (spec and model and rows):
        raise InputError(
            "--useful needs --model and --grader, because the training signal depends on both"
        )
    found = datasets.check(
        data,
        valid,
        test,
        method=method,
        grader=spec,
        response_format=answer_format,
        model=model,
        near_duplicates=not quick,
        progress=_progress,
    )
    if lacking:
        found = _with(found, [datasets.Finding("info", "missing_parts", lacking)])
    is_graded = bool(spec and found.ok and found.files and found.files[0].form == "reinforcement")
    if useful and found.ok and not is_graded:
        raise InputError("--useful needs RFT rows: a model's answers to other rows have no rewards")
    audit = _audit(data, spec, answer_format) if spec and is_graded else None
    if audit is not None and audit.verdict is not None:  # of a judge, which only the audit calls
        found, audit = _with(found, [datasets.verdict_finding(audit.verdict)]), None
    preview = None
    if spec and model and rows and is_graded:
        preview = _preview(data, spec, answer_format, model, rows, completions)
        found = _with(found, preview.findings())
    if preview and useful:
        preview.write_useful(data, useful)
    if html:
        _write_page(html, found, audit, preview)
    _print(found, audit, preview, as_json)
    raise typer.Exit(0 if found.ok else 1)


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
            metavar="TEXT", help="For a table: the prompt, as in 'Ticket: {ticket}'; \\n is a line."
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
        typer.Option("--share", metavar="PART=SHARE", help="Default train=0.8 valid=0.1 test=0.1."),
    ] = None,
    seed: Seed = 1,
    stratify: Stratify = None,
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
        stratify=stratify,
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
    frame = datasets.profile(
        source,
        grader=datasets.read_json(grader) if grader else None,
        response_format=datasets.read_json(response_format) if response_format else None,
        model=model,
    )
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
    said, told = (text.replace("\\n", "\n") for text in (prompt, system or ""))
    return datasets.Columns(said, answer_names(answer or "", known), told)


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


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty() and total > 50_000:
        end = "\n" if done == total else ""
        rewrite_line(f"checked {done:,} of {total:,} rows{end}")


def _audit(data: Path, spec: dict[str, Any], answer_format: dict[str, Any] | None) -> Audit:
    from rftkit import datasets, graders
    from rftkit.client import judge_call

    items = [each.row.item for each in datasets.spread_rows(data, 50) if each.row]
    return graders.audit(spec, items, response_format=answer_format, complete=judge_call())


def _preview(
    data: Path,
    spec: dict[str, Any],
    answer_format: dict[str, Any] | None,
    model: str,
    rows: int,
    completions: int,
) -> Preview:
    from rftkit import connect, datasets
    from rftkit.client import judge_call

    return datasets.preview(
        connect(),
        model,
        datasets.spread_rows(data, rows),
        grader=spec,
        source=str(data),
        response_format=answer_format,
        completions=completions,
        grader_options={"complete": judge_call()},
        max_completion_tokens=MAX_ANSWER_TOKENS,
    )


def _with(found: Check, more: Sequence[Finding]) -> Check:
    """The check with what the audit or the preview found."""
    from rftkit.datasets.findings import sorted_findings

    return replace(found, findings=sorted_findings([*found.findings, *more]))


def _write_page(html: Path, found: Check, audit: Audit | None, preview: Preview | None) -> None:
    from rftkit import datasets, views
    from rftkit.wholefile import replacing

    charts = ""
    if found.files and found.files[0].num_rows:
        frame = datasets.profile(found.files[0].name, preview=preview, limit=PROFILED)
        charts = views.profile_chart(frame)
    body = views.check_page(found, audit=audit, preview=preview, charts=charts)
    with replacing(html) as file:
        file.write(views.page("Dataset check", body).encode())


def _print(found: Check, audit: Audit | None, preview: Preview | None, as_json: bool) -> None:
    if as_json:
        result = found.to_dict()
        if audit is not None:
            result["audit"] = {**asdict(audit), "findings": audit.findings()}
        if preview is not None:
            result["preview"] = asdict(preview)
        print_json(result)
        return
    print(found)
    if audit is not None:
        print(f"\nrewards of the grader on {audit.num_rows} rows\n{audit}")
    if preview is not None:
        print(f"\nrewards of {preview.model} by row\n{table(preview.records())}")
