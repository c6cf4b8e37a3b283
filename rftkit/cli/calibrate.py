"""The command `rftkit grader calibrate`; see `rftkit.cli`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rftkit.cli.console import Format, Json, show, table
from rftkit.errors import InputError
from rftkit.wholefile import check_output, write_whole
from rftkit.wording import cut

if TYPE_CHECKING:
    from rftkit.evals import Agreement, Calibrated, Label, Samples
    from rftkit.evals.comparison import Estimate

__all__ = ["calibrate"]

SHOWN = 5
"""Answers that are listed on each side."""


def calibrate(
    grader: Annotated[Path, typer.Argument(help="JSON file of the grader.")],
    labels: Annotated[
        Path,
        typer.Argument(
            help='Lines {"item": …, "sample": "an answer", "label": "accept"}, or the file of the '
            "panel Labeller."
        ),
    ],
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="The runs that Labeller showed: ftjob-…, eval_…, localrun_…"),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="The key of the judge, if a multi grader has several."),
    ] = None,
    cut: Annotated[
        list[str] | None,
        typer.Option("--slice", metavar="KEY", help="Compare by this key of the rows; repeatable."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="A reward of at least this passes; default the judge's own threshold."),
    ] = None,
    response_format: Format = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write all figures to this JSON file.")
    ] = None,
    upload: Annotated[
        bool, typer.Option(help="Upload the calibration, so that jobs with this judge find it.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare a judge's grades with people's labels.

    The judge grades the labelled answers. The result is kept, and jobs may require it. It holds for
    exactly this model, prompt and settings; after a change, run the command again with the same
    labels.
    """
    from rftkit import connect, datasets, evals
    from rftkit.client import judge_call

    if out is not None:
        check_output(out, [grader, labels])
    spec = datasets.read_json(grader)
    answer_format = datasets.read_json(response_format) if response_format else None
    samples, given = _labelled(labels, runs or [], answer_format)
    found = evals.calibrate(
        samples,
        given,
        spec,
        part=part,
        slices=cut or (),
        threshold=threshold,
        seed=seed,
        complete=judge_call(),
    )
    if not found.overall.num_labels:
        raise InputError(f"no labelled answer can be compared with the judge: {_why(found)}")
    if out is not None:
        text = json.dumps(found.to_dict(), ensure_ascii=False, indent=1)
        write_whole(out, f"{text}\n".encode())
    file_id = evals.upload_calibration(connect(), found) if upload else None
    kept = f"\nuploaded: {file_id}; jobs with this judge find it" if file_id else ""
    show({**found.to_dict(), "file": file_id}, _text(found) + kept, as_json)


def _labelled(
    path: Path, runs: list[str], response_format: dict[str, Any] | None
) -> tuple[Samples, list[Label]]:
    from rftkit import connect, evals
    from rftkit.evals.labels import has_answers
    from rftkit.evals.saved_runs import LOCAL_PREFIX

    if has_answers(path):
        if runs:
            raise InputError(f"{path} has the labelled answers itself; leave out {', '.join(runs)}")
        return evals.labelled_answers(path, response_format)
    if not runs:
        raise InputError(
            f"{path} has labels of the panel Labeller, which name answers of runs: name the runs, "
            f"such as rftkit grader calibrate GRADER {path} ftjob-…"
        )
    if all(run.startswith(LOCAL_PREFIX) for run in runs):
        return evals.kept(*runs), evals.read_labels(path)
    return evals.fetch(connect(), *runs, progress=True), evals.read_labels(path)


def _why(found: Calibrated) -> str:
    errors = found.samples.frame["error"].dropna()
    if len(errors):
        return str(errors.iloc[0])
    if found.num_failed:
        return "no reason was given"
    return "people are divided over each of them, and ties are left out"


def _text(found: Calibrated) -> str:
    record, overall = found.record(), found.overall
    parts = [f"judge {record.name} ({record.model}), digest {found.digest}", "", *found.sentences]
    parts += ["", table([_line("all labels", overall), *_classes(overall)])]
    if found.slices:
        lines = [
            {**_line(f"{each.by} = {each.value}", each.found), "": "fails" if each.fails else ""}
            for each in found.slices
        ]
        parts += ["", "by slice, the one that agrees least first", table(lines)]
    for title, places in (("lenient", overall.lenient), ("harsh", overall.harsh)):
        if places:
            parts += ["", f"{title}, worst first", table(_answers(found.samples, places[:SHOWN]))]
    return "\n".join(parts)


def _line(name: str, found: Agreement) -> dict[str, Any]:
    is_verdict = found.kind == "verdict"
    line = {"": name, "labels": found.num_labels}
    measured = {"agreement": found.agreement, "kappa": found.kappa}
    if not is_verdict:
        measured = {"correlation": found.correlation, "reward minus label": found.bias}
    for what, each in measured.items():
        line |= {what: each.value, **_ends(what, each)}
    return {"group": line.pop(""), **line}


def _ends(what: str, each: Estimate) -> dict[str, Any]:
    return {f"{what} from": each.low, f"{what} to": each.high}


def _classes(found: Agreement) -> list[dict[str, Any]]:
    what = "agreement" if found.kind == "verdict" else "reward minus label"
    return [
        {
            "group": f"people: {each.label}",
            "labels": each.num_labels,
            what: each.measured.value,
            **_ends(what, each.measured),
        }
        for each in found.classes
    ]


def _answers(samples: Samples, places: tuple[tuple[str, str, int], ...]) -> list[dict[str, Any]]:
    frame = samples.frame
    keys = zip(frame["row"], frame["run"], frame["sample"], strict=True)
    at = {key: number for number, key in enumerate(keys)}
    lines = []
    for place in places:
        line = frame.iloc[at[place]]
        shown = cut(" ".join(str(line["answer"]).split()), 70)
        number = samples.numbers[place[0]] + 1
        lines.append({"row": number, "reward": line["reward"], "answer": shown})
    return lines
