"""Kinds of objects beside files, jobs and evals: their routes, and how each is saved.

Every kind with a list route in the `openai` client that holds something of the user's own is here;
not every service has each. An object is saved as it is, with the list that belongs to it and, where
the service gives it out, its content. Not here: settings, keys and secrets of an organization.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BETAS", "OTHERS", "Other"]

BATCH_ENDS = ("completed", "failed", "expired", "cancelled")
VIDEO_ENDS = ("completed", "failed")


@dataclass(frozen=True, slots=True)
class Other:
    """One other kind of object."""

    route: str
    file: str
    """Name of the object itself, in its folder and without `.json`."""
    part: str | None = None
    """The kind of list that belongs to each object."""
    part_route: str | None = None
    """The last part of that list's route."""
    content: str | None = None
    """The suffix of the content that each object has."""
    ends: tuple[str, ...] | None = None
    """States in which an object does not change any more; None: it has no states."""


OTHERS = {
    "chats": Other("/chat/completions", "chat", "messages", "messages"),
    "vector_stores": Other("/vector_stores", "vector_store", "store_files", "files"),
    "batches": Other("/batches", "batch", ends=BATCH_ENDS),
    "assistants": Other("/assistants", "assistant"),
    "agents": Other("/agents", "agent"),
    "chatkit_threads": Other("/chatkit/threads", "thread", "thread_items", "items"),
    "containers": Other("/containers", "container", "container_files", "files"),
    "skills": Other("/skills", "skill", "skill_versions", "versions", content="zip"),
    "videos": Other("/videos", "video", content="mp4", ends=VIDEO_ENDS),
    "voice_consents": Other("/audio/voice_consents", "voice_consent"),
}
"""The kinds by their names in a dump and in `--only`."""
BETAS = {
    "/agents": "agents=v1",
    "/assistants": "assistants=v2",
    "/chatkit": "chatkit_beta=v1",
    "/vector_stores": "assistants=v2",
}
"""Start of a route -> the `OpenAI-Beta` header that it needs, as the `openai` client sends it."""
