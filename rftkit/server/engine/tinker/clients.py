"""What the versions of the `tinker` client do differently, behind one set of calls.

Servers understand some versions only (the README has a table). Up to 0.24 the client speaks JSON;
from 0.25 on it sends and reads the tensors of samples and updates as protobuf; from 0.26 on it
wants a number for each sample. Later versions dropped calls that servers still have: unloading a
policy (from 0.26), archives of checkpoints (from 0.34). Those are requests of our own here. In 0.38
calls answer with futures that have to be resolved. Not here: what is common to all versions
(`calls`, `engine`).
"""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from typing import IO, Any
from urllib.parse import quote, urlsplit

from rftkit.jsontext import parse_json

__all__ = [
    "advice",
    "client_of",
    "from_state",
    "future_of",
    "open_archive",
    "supported_models",
    "unload",
]

UNLOAD_SECONDS = 10
ARCHIVE_SECONDS = 600


def supported_models(service: Any, *, base_url: str, api_key: str) -> list[str]:
    """Names of the models that the server trains."""
    import tinker

    rest: Any = getattr(tinker, "RestClient", None)
    if hasattr(rest, "get_server_capabilities"):  # 0.38 warns about the service's
        found = rest(base_url=base_url, api_key=api_key).get_server_capabilities().result()
    else:
        found = service.get_server_capabilities()
    return [str(model.model_name) for model in found.supported_models]


def future_of(asked: Any) -> Future[Any]:
    """The standard future of a call, which newer clients wrap."""
    future: Future[Any] = asked.future() if hasattr(asked, "future") else asked
    return future


def client_of(made: Any) -> Any:
    """The training or sampling client that was asked for, which newer versions give as a future."""
    return made.result() if hasattr(type(made), "result") else made


def from_state(service: Any, path: str, *, base_model: str, rank: int, with_optimizer: bool) -> Any:
    """A training client with saved weights; with the optimizer's state too, or without."""
    import tinker

    if tinker.__version__.startswith("0.25."):
        # It has the server create the policy while loading, which SkyRL 0.4 does not do.
        training = client_of(
            service.create_lora_training_client(
                base_model=base_model, rank=rank, train_unembed=False
            )
        )
        load = training.load_state_with_optimizer if with_optimizer else training.load_state
        load(path).result()
        return training
    if with_optimizer:
        return client_of(service.create_training_client_from_state_with_optimizer(path))
    return client_of(service.create_training_client_from_state(path))


def unload(training: Any) -> None:
    """Free a policy's place on the server: by unloading it or, where that is gone, its session.

    A server that does not answer frees it some time later.
    """
    from tinker import APIStatusError, TinkerError
    from tinker.lib.client_connection_pool_type import ClientConnectionPoolType

    holder = training.holder
    options: Any = {"max_retries": 0, "timeout": UNLOAD_SECONDS}

    async def ask() -> None:
        with holder.aclient(ClientConnectionPoolType.TRAIN) as client:
            body = {"model_id": training.model_id, "type": "unload_model"}
            try:
                await client.post(
                    "/api/v1/unload_model", body=body, cast_to=object, options=options
                )
            except APIStatusError as error:
                if error.status_code not in (404, 405):
                    raise
                path = f"/api/v1/sessions/{holder.get_session_id()}/finish"
                body = {"reason": {"type": "success"}, "detail": None}
                await client.post(path, body=body, cast_to=object, options=options)

    with contextlib.suppress(TinkerError, TimeoutError):
        holder.run_coroutine_threadsafe(ask()).result(UNLOAD_SECONDS)


@contextlib.contextmanager
def open_archive(url: str, api_key: str, run: str, checkpoint: str) -> Iterator[IO[bytes]]:
    """The tar of a checkpoint, as the server at `url` packs it.

    Raises:
        OSError: the server offers none.
        ValueError: its answer names no address.
    """
    path = f"/api/v1/training_runs/{quote(run)}/checkpoints/{quote(checkpoint)}/archive"
    asked = urllib.request.Request(
        url.rstrip("/") + path, headers={"X-API-Key": api_key, "Accept": "application/json"}
    )
    # The archive may be on another host, which must not see the key.
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(asked, timeout=ARCHIVE_SECONDS) as answer:
            address = parse_json(answer.read())["url"]
    except urllib.error.HTTPError as error:
        if error.code not in (301, 302, 303, 307, 308):
            raise
        address = error.headers.get("Location")
    except (KeyError, TypeError) as error:
        raise ValueError("the answer names no archive") from error
    if urlsplit(str(address)).scheme not in ("http", "https"):
        raise ValueError("the answer names no archive")
    with urllib.request.urlopen(address, timeout=ARCHIVE_SECONDS) as archive:
        yield archive


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def advice(error: BaseException) -> str | None:
    """Which client to install where server and client do not understand each other; else None."""
    text = str(error)
    if "only supports as proto" in text:
        return "the server speaks JSON; type: pip install 'rftkit[skyrl-0-3]'"
    if "sample_sequence_ids" in text:
        return "the server does not number samples; type: pip install 'rftkit[skyrl]'"
    if "x-protobuf" in text:
        return (
            "the server speaks protobuf; type: pip install 'rftkit[skyrl]' for SkyRL 0.4, else "
            "pip install 'rftkit[tinker]'"
        )
    return None
