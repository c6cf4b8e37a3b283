"""The command `rftkit check`; see `rftkit.cli`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rftkit.cli.console import Format, Grader, Json, ToolsFile, print_json, rewrite_line, table
from rftkit.errors import InputError
from rftkit.wholefile import check_output
from rftkit.wording import counted

if TYPE_CHECKING:
    from rftkit.datasets import Check, Finding, Preview
    from rftkit.graders import Audit

__all__ = ["check"]

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
            metavar="NAME", help="A folder, or a bundled dataset, such as security_review."
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
    tools: ToolsFile = None,
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
    from rftkit import datasets, graders
    from rftkit.graders.relative import NO_GROUP, needs_group

    spec = datasets.read_json(grader) if grader else None
    answer_format = datasets.read_json(response_format) if response_format else None
    entries = datasets.read_tools(tools) if tools else None
    if dataset:
        if data or valid or test:
            raise InputError("use either --dataset or the paths of files, not both")
        data = Path(dataset)
    lacking = ""
    files: list[Path | None] = [valid, test, grader, response_format, tools]
    if data is not None:
        given = datasets.load(data)
        files += given.files
        beside = {"valid": valid, "test": test, "grader": grader}
        absent = [part for part in given.missing if beside[part] is None]
        if absent and given.train != data:
            lacking = f"{given.name} has no {' and no '.join(absent)}"
        data, valid, test = given.train, valid or given.valid, test or given.test
        spec, answer_format = spec or given.grader, answer_format or given.response_format
        entries = entries or given.tools
    if data is None:
        raise InputError(
            "there is nothing to check; type: rftkit check DATA, or rftkit check --dataset NAME"
        )
    for out in filter(None, (html, useful)):
        check_output(out, files)
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
        tools=entries,
        model=model,
        near_duplicates=not quick,
        progress=_progress,
    )
    if lacking:
        found = _with(found, [datasets.Finding("info", "missing_parts", lacking)])
    is_graded = bool(spec and found.ok and found.files and found.files[0].form == "reinforcement")
    if useful and found.ok and not is_graded:
        raise InputError("--useful needs RFT rows: a model's answers to other rows have no rewards")
    audit = None
    if spec and is_graded and any(map(needs_group, graders.parts(spec).values())):
        found = _with(found, [datasets.Finding("info", "grader_not_audited", NO_GROUP)])
    elif spec and is_graded:
        audit = _audit(data, spec, answer_format)
    if audit is not None and audit.verdict is not None:  # judges are called by the audit only
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
    from rftkit.reports.render import without_folders
    from rftkit.wholefile import replacing

    charts = None
    if found.files and found.files[0].num_rows:
        frame = datasets.profile(found.files[0].name, preview=preview, limit=PROFILED)
        charts = views.profile_chart(frame)
    body = views.check_page(found, audit=audit, preview=preview, charts=charts)
    page = without_folders(views.page("Dataset check", body), [each.name for each in found.files])
    with replacing(html) as file:
        file.write(page.encode())


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
        print(f"\nrewards of the grader on {counted(audit.num_rows, 'row')}\n{audit}")
    if preview is not None:
        print(f"\nrewards of {preview.model} by row\n{table(preview.records())}")
