"""Fetch a model's weights from an rftkit platform into a folder, and put a folder on the hub.

Hosted services do not export weights; for one of them this raises an error. The platform decides
which files the folder contains, and checks that they are the model before it sends them.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode, urljoin
from urllib.request import ProxyHandler, Request, build_opener

from rftkit.errors import InputError, MissingExtraError, NotFoundError, PlatformError
from rftkit.jsontext import parse_json

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["FAILED", "REPORT", "fetch_weights", "push_folder", "report_of"]

CONNECT_SECONDS = 3600.0
"""How long a platform may take to make and check the files."""
REPORT, FAILED = "export_check.json", "EXPORT_FAILED.md"
"""Files of an export: what the check found, and the mark of a folder that is not the model."""


def fetch_weights(
    client: OpenAI,
    model: str,
    out: str | Path,
    *,
    merged: bool = False,
    format: str | None = None,
    quantize: str | None = None,
    rows: int | None = None,
) -> list[str]:
    """Write a model as a PEFT adapter folder, a folder for transformers, or a GGUF file.

    Args:
        client: of an rftkit platform.
        model: a fine-tuned model or a checkpoint; or a base model, except for adapters.
        out: a folder that is new or empty.
        merged: the older spelling of `format="merged"`.
        format: peft (the default), merged or gguf.
        quantize: of a GGUF file, such as q8_0; default f16.
        rows: how many of the job's rows the platform checks the export on; default 16, 0 for none.

    Returns:
        The names of the files. `export_check.json` says what was compared; a folder that is not the
        model has `EXPORT_FAILED.md` (see `report_of`).

    Raises:
        InputError: `out` is not empty.
        NotFoundError: the service has no such model, or does not export weights.
        PlatformError: the export or the download failed.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder; choose another with --out", param="out")
    given = {
        "merged": str(merged).lower(), "format": format, "quantize": quantize, "rows": rows,
    }  # fmt: skip
    query = urlencode({name: value for name, value in given.items() if value is not None})
    url = urljoin(str(client.base_url), f"/rftkit/models/{quote(model, safe=':')}/weights?{query}")
    headers = {"authorization": f"Bearer {client.api_key}", "content-type": "application/json"}
    request = Request(url, b"{}", headers)
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=CONNECT_SECONDS) as answer:
            if answer.headers.get_content_type() != "application/x-tar":
                raise _not_ours(client, model)
            with tarfile.open(fileobj=answer, mode="r|") as tar:
                tar.extractall(folder, filter="data")
    except HTTPError as error:
        raise _refusal(client, model, error) from None
    except (OSError, tarfile.TarError, HTTPException) as error:
        raise PlatformError(f"the download of {url} failed: {error}") from error
    return sorted(file.name for file in folder.iterdir())


def report_of(folder: str | Path) -> dict[str, Any]:
    """The result of the check of an export: `result` is same, differs or not checked.

    Raises:
        InputError: the folder is not an export with a report.
    """
    path = Path(folder) / REPORT
    try:
        report: dict[str, Any] = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); is {folder} an export?") from None
    return report


def push_folder(folder: str | Path, name: str, *, public: bool = False) -> str:
    """Put an export on the Hugging Face hub; its address.

    Args:
        folder: what `fetch_weights` wrote.
        name: OWNER/NAME. A repository that is not there is made, private unless `public`.
        public: whether everybody may read a repository that is made.

    Raises:
        InputError: the folder is not the model, or nobody else could load it; or the name is none.
        MissingExtraError: `huggingface_hub` is not installed.
        PlatformError: the hub refused.
    """
    folder = Path(folder)
    check_push(name)
    report = report_of(folder)
    if (folder / FAILED).exists():
        raise InputError(f"{folder} is not the model, see {FAILED} there; it is not pushed")
    if report["format"] == "peft" and (base := _local_base(folder)):
        raise InputError(
            f"the adapter in {folder} needs the base model in {base}, which nobody else has; "
            "export the model with --format merged to push it"
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi()
    try:
        address = hub.create_repo(name, private=not public, exist_ok=True)
        hub.upload_folder(
            repo_id=name, folder_path=folder, commit_message=f"rftkit: {report['model']}"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise PlatformError(f"the hub did not take {name}: {error}") from error
    return str(address)


def check_push(name: str) -> None:
    """Find out before an export whether it could be pushed.

    Raises:
        InputError: the name is not OWNER/NAME.
        MissingExtraError: `huggingface_hub` is not installed.
    """
    if name.count("/") != 1 or not all(name.split("/")):
        raise InputError(f"expected OWNER/NAME of the hub, found {name!r}", param="push")
    try:
        import huggingface_hub  # noqa: F401 - only whether it is there
    except ImportError:
        raise MissingExtraError("huggingface_hub", "local") from None


def _local_base(folder: Path) -> str | None:
    """The folder that an adapter names as its base; None: it names a model of the hub."""
    config: Mapping[str, Any] = parse_json((folder / "adapter_config.json").read_bytes())
    base = str(config["base_model_name_or_path"])
    return base if Path(base).is_absolute() else None


def _refusal(client: OpenAI, model: str, error: HTTPError) -> Exception:
    try:
        body = parse_json(error.read())["error"]
        message, code = str(body["message"]), body.get("code")
    except (ValueError, KeyError, TypeError):
        return _not_ours(client, model)
    if error.code == 404 and code != "model_not_found":
        return _not_ours(client, model)
    return NotFoundError(message) if error.code == 404 else PlatformError(message)


def _not_ours(client: OpenAI, model: str) -> NotFoundError:
    return NotFoundError(
        f"{client.base_url} does not export the weights of {model}: only an rftkit platform does. "
        "`rftkit job rerun` trains the same job here."
    )
