"""Fetch a model's weights from an rftkit platform into a folder.

Hosted services do not export weights; for one of them this raises an error. The platform decides
which files the folder contains.
"""

from __future__ import annotations

import json
import tarfile
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import quote, urljoin
from urllib.request import ProxyHandler, Request, build_opener

from rftkit.errors import InputError, NotFoundError, PlatformError

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["fetch_weights"]

CONNECT_SECONDS = 600.0
"""How long a platform may take to make the files; a large model is merged first."""


def fetch_weights(
    client: OpenAI, model: str, out: str | Path, *, merged: bool = False
) -> list[str]:
    """Write a model as a PEFT adapter folder, or with `merged` as a folder for transformers.

    Args:
        client: of an rftkit platform.
        model: a fine-tuned model or a checkpoint; with `merged` a base model too.
        out: a folder that is new or empty.
        merged: whether to merge the adapter into the base model.

    Returns:
        The names of the files.

    Raises:
        InputError: `out` is not empty.
        NotFoundError: the service has no such model, or does not export weights.
        PlatformError: the export or the download failed.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder; choose another with --out", param="out")
    path = f"/rftkit/models/{quote(model, safe=':')}/weights?merged={str(merged).lower()}"
    url = urljoin(str(client.base_url), path)
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


def _refusal(client: OpenAI, model: str, error: HTTPError) -> Exception:
    try:
        body = json.load(error)["error"]
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
