"""Tell a configured endpoint that a job or an eval run has ended.

The news is written in the transaction that ends the object (`deliveries`), and sent from here until
it arrives or two days of growing pauses are over, so a kill in between loses nothing; an endpoint
may see the same event id twice. Signed as the SDK's `client.webhooks.unwrap` checks it. Off when
`RFTKIT_WEBHOOK_URL` is not set.
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
from urllib.request import Request, urlopen

from rftkit import settings
from rftkit.safetext import redacted
from rftkit.server.store.records import Delivery
from rftkit.server.store.store import Store, now

__all__ = ["deliver_for_ever", "signed_headers"]

log = logging.getLogger("rftkit.server")

LOOK_SECONDS = 1.0
TIMEOUT_SECONDS = 15.0
ATTEMPTS = 48
LONGEST_PAUSE_SECONDS = 3_600
OLD_SECONDS = 2 * 24 * 3_600


async def deliver_for_ever(store: Store) -> None:
    """Send what is due, look again, for ever."""
    if settings.webhook()[0] is None:
        return
    await asyncio.to_thread(store.drop_deliveries, now() - OLD_SECONDS)
    while True:
        for delivery in await asyncio.to_thread(store.due_deliveries):
            await asyncio.to_thread(_deliver, store, delivery)
        await asyncio.sleep(LOOK_SECONDS)


def _deliver(store: Store, delivery: Delivery) -> None:
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
    headers = signed_headers(delivery.id, body, secret)
    attempts, due_at = delivery.attempts + 1, None
    try:
        with urlopen(Request(url or "", body.encode(), headers), timeout=TIMEOUT_SECONDS):
            pass
    except (OSError, ValueError) as error:
        if attempts < ATTEMPTS:
            due_at = now() + min(2**attempts, LONGEST_PAUSE_SECONDS)
        again = "given up" if due_at is None else f"again in {due_at - now()} s"
        said = redacted(str(error), [url])  # its path may be a secret, as that of Slack is
        host = urlsplit(url or "").hostname
        log.warning("webhook %s (%s) did not arrive: %s; %s", delivery.id, host, said, again)
    store.update_delivery(delivery.id, attempts=attempts, due_at=due_at)


def signed_headers(event_id: str, body: str, secret: str | None) -> dict[str, Any]:
    """The headers of one event, by the Standard Webhooks scheme; unsigned without a secret."""
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
