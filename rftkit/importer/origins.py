"""Which hosted account to read: `openai`, `azure` or a base URL, and the client that reads it.

The key comes from the environment and stays in this object: it is not in its `repr`, and nothing
that is written knows it. Not here: requests, retries, anything on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from rftkit import settings
from rftkit.errors import InputError

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["OPENAI_URL", "Origin", "connect", "is_openai", "origin"]

OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True)
class Origin:
    """A service and how to sign requests to it."""

    base_url: str
    """Ends in the version segment, without a slash: `https://api.openai.com/v1`."""
    key: str | None = field(repr=False)
    """The API key; None sends no credentials at all."""
    is_azure: bool = False
    """Sign with the header `api-key` instead of a bearer token."""
    api_version: str | None = None
    """Azure only: the query `api-version`, for its previews."""


def origin(source: str) -> Origin:
    """The origin that `--from` names.

    Args:
        source: `openai` (`OPENAI_API_KEY`), `azure` (`AZURE_OPENAI_ENDPOINT`,
            `AZURE_OPENAI_API_KEY`, optionally `OPENAI_API_VERSION`) or the base URL of another
            service with the same routes (`OPENAI_API_KEY`, if set).

    Raises:
        InputError: a variable is missing, or `source` is none of the three.
    """
    if source == "azure":
        endpoint, key, version = settings.azure()
        if not endpoint:
            raise InputError(
                "AZURE_OPENAI_ENDPOINT is not set; "
                "type: export AZURE_OPENAI_ENDPOINT=https://<resource>.openai.azure.com"
            )
        if not key:
            raise InputError("AZURE_OPENAI_API_KEY is not set; export the key of that resource")
        base_url = _checked_url(endpoint).removesuffix("/openai/v1").removesuffix("/openai")
        return Origin(f"{base_url}/openai/v1", key, is_azure=True, api_version=version)
    key = settings.remote()[1]
    if source == "openai":
        if not key:
            raise InputError("OPENAI_API_KEY is not set; export a key of the account to save")
        return Origin(OPENAI_URL, key)
    return Origin(_checked_url(source), key)


def connect(origin: Origin, *, timeout_seconds: float) -> OpenAI:
    """The official client for `origin`; it never retries, the caller does."""
    import openai

    host = urlsplit(origin.base_url).hostname

    def sign_only_this_host(request: Any) -> None:  # redirects keep custom headers
        if request.url.host != host:
            request.headers.pop("api-key", None)

    return openai.OpenAI(
        api_key=origin.key or "none",
        base_url=origin.base_url,
        max_retries=0,
        timeout=openai.Timeout(timeout_seconds, connect=min(timeout_seconds, 10.0)),
        default_headers={"api-key": origin.key} if origin.is_azure and origin.key else None,
        default_query={"api-version": origin.api_version} if origin.api_version else None,
        http_client=openai.DefaultHttpxClient(event_hooks={"request": [sign_only_this_host]}),
    )


def _checked_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            "cannot import from what --from gives (not repeated here, it might be a key): "
            f"expected openai, azure or a base URL such as {OPENAI_URL}"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            f"the URL of {parts.hostname} carries a user name, a query or a fragment; give only "
            "the base URL and put the key into OPENAI_API_KEY (azure: AZURE_OPENAI_API_KEY)"
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def is_openai(url: str) -> bool:
    """Whether a base URL is OpenAI's own, in any region (`eu.api.openai.com`)."""
    return f".{urlsplit(url).hostname}".endswith(".api.openai.com")
