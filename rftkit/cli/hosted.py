"""The command `rftkit grader hosted`; see `rftkit.cli`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from rftkit.wholefile import check_output, replacing

__all__ = ["hosted"]


def hosted(
    grader: Annotated[Path, typer.Argument(help="JSON file of the grader.")],
    purpose: Annotated[
        Literal["job", "eval"],
        typer.Option("--for", help="A job's grader, or the testing criteria of an eval."),
    ] = "job",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write it to this file; default the terminal."),
    ] = None,
) -> None:
    """Write a grader in the JSON that hosted services know.

    They have no rubric; each of its criteria becomes a grader with a model.
    """
    from rftkit import datasets
    from rftkit.graders.hosted import hosted as for_job
    from rftkit.graders.hosted import hosted_criteria

    spec = datasets.read_json(grader)
    written = for_job(spec) if purpose == "job" else hosted_criteria(spec)
    text = json.dumps(written, indent=2, ensure_ascii=False)
    if out is None:
        print(text)
        return
    check_output(out, [grader])
    with replacing(out) as file:
        file.write(f"{text}\n".encode())
    print(f"wrote {out}")
