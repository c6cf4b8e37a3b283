"""Webhooks: notify an endpoint that a job or an eval run has ended.

The store queues the event in the transaction that ends the job or run (`deliveries`). This module
sends it, with growing pauses, until it is delivered or two days are over. A kill loses no event,
but an endpoint may get the same event id twice. Events are signed as the SDK's
`client.webhooks.unwrap` expects. Webhooks are off if `RFTKIT_WEBHOOK_URL` is not set.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
from typing import Any
from urllib.parse import urlsplit

from rftkit import settings
from rftkit.backoff import backoff_seconds, retry_after
from rftkit.graders.calls import Abandoned, Calls
from rftkit.graders.posting import post
from rftkit.safetext import redacted
from rftkit.server.inference.backlog import poll_forever
from rftkit.server.store.records import Delivery
from rftkit.server.store.store import Store, now

__all__ = ["deliver_events", "signed_headers"]

log = logging.getLogger("rftkit.server")

POLL_SECONDS = 1.0
TIMEOUT_SECONDS = 15.0
"""The timeout of one attempt, however slowly the endpoint answers."""
ATTEMPTS = 48
LONGEST_PAUSE_SECONDS = 3_600
OLD_SECONDS = 2 * 24 * 3_600


async def deliver_events(store: Store) -> None:
    """Send the events that are due, and poll for new ones until cancelled."""
    if settings.webhook()[0] is None:
        return

    calls = Calls()

    async def deliver() -> None:
        await asyncio.to_thread(store.drop_deliveries, now() - OLD_SECONDS)
        for delivery in await asyncio.to_thread(store.due_deliveries):
            await asyncio.to_thread(_deliver, store, delivery, calls)

    try:
        await poll_forever("webhooks", deliver, POLL_SECONDS)
    finally:
        calls.close(now=True)  # so that a hanging endpoint does not keep the server alive


def _deliver(store: Store, delivery: Delivery, calls: Calls) -> None:
    url, secret = settings.webhook()
    body = json.dumps(
        {
            "id": delivery.id,
            "object": "event",
            "created_at": delivery.created_at,
            "type": delivery.type,
            "data": {"id": delivery.object_id},
        }
    )
    attempts, due_at = delivery.attempts + 1, None
    try:
        headers = signed_headers(delivery.id, body, secret)
        trouble, wait = calls.run(lambda: _sent(url or "", headers, body), TIMEOUT_SECONDS)
    except Abandoned:
        return  # the server stops; it is sent after the next start
    except Exception as error:  # a network error, or an invalid address
        trouble, wait = str(error) or type(error).__name__, 0.0
    if trouble is not None:
        if attempts < ATTEMPTS:
            asked = min(wait, LONGEST_PAUSE_SECONDS)
            due_at = now() + int(max(asked, backoff_seconds(attempts, 1, LONGEST_PAUSE_SECONDS)))
        outcome = "giving up" if due_at is None else f"next attempt in {due_at - now()} s"
        parts = urlsplit(url or "")  # the path may be a secret, as Slack's is
        reason = redacted(trouble, [url, parts.path, parts.query])
        log.warning("webhook %s (%s) failed: %s; %s", delivery.id, parts.hostname, reason, outcome)
    store.update_delivery(delivery.id, attempts=attempts, due_at=due_at)


def _sent(url: str, headers: dict[str, Any], body: str) -> tuple[str | None, float]:
    """Why an event has not arrived, or None; and the seconds that the endpoint asks to wait.

    A redirect is not followed: what follows one asks again without the event.
    """
    status, _, *rest = post(url, headers, body.encode())
    if 200 <= status < 300:
        return None, 0.0
    is_redirect = 300 <= status < 400
    more = ": redirects are not followed; set the final RFTKIT_WEBHOOK_URL" if is_redirect else ""
    return f"HTTP {status}{more}", retry_after(rest[0] if rest else None) or 0.0


def signed_headers(event_id: str, body: str, secret: str | None) -> dict[str, Any]:
    """Return an event's headers by the Standard Webhooks scheme; unsigned without a secret."""
    moment = str(now())
    headers = {
        "content-type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": moment,
    }
    if secret is not None:
        encoded = secret.removeprefix("whsec_")
        key = base64.b64decode(encoded) if encoded != secret else secret.encode()
        digest = hmac.new(key, f"{event_id}.{moment}.{body}".encode(), hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers
