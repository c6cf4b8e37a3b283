"""A prompt file: a system text and example messages that are put before each row's messages.

`rftkit prompt optimize` writes one; jobs, eval runs and the playground take it. The order is:
system message, examples, the row's other messages. A row's own system (or developer) message is
kept after the text of the file, after a blank line and in one message, because chat templates take
one system message. It is replaced only if it says exactly what the file `replaces`: the text that
the search started from. Not here: the search (`rftkit.ladder`), and rows (`rftkit.rows`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.errors import InputError
from rftkit.examples import text_of
from rftkit.jsondocuments import read_document
from rftkit.wholefile import write_whole
from rftkit.wording import counted

__all__ = ["Prompt", "own_system", "read_prompt", "write_prompt"]

SYSTEM_ROLES = ("system", "developer")
EXAMPLE_ROLES = ("user", "assistant")
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is put before the messages of each row."""

    system: str = ""
    """The system text; empty for none."""
    examples: tuple[Message, ...] = ()
    """Messages of user and assistant in turn; the last one is the assistant's."""
    replaces: str | None = None
    """A row's own system text that `system` replaces; None when every own text is kept."""

    def before(self, messages: Sequence[Mapping[str, Any]]) -> list[Message]:
        """The messages of a row with this prompt before them."""
        own, role, rest = None, "system", [dict(message) for message in messages]
        if rest and rest[0].get("role") in SYSTEM_ROLES:
            own, role = text_of(rest[0]), rest[0]["role"]
            rest = rest[1:]
        if own is not None and own == self.replaces:
            own = None
        text = "\n\n".join(part for part in (self.system, own) if part)
        system = [{"role": role, "content": text}] if text else []
        return [*system, *(dict(each) for each in self.examples), *rest]

    def __str__(self) -> str:
        pairs = sum(message["role"] == "assistant" for message in self.examples)
        said = f"a system text of {len(self.system):,} characters" if self.system else ""
        shown = counted(pairs, "example") if pairs else ""
        return " and ".join(filter(None, [said, shown])) or "an empty prompt"


def own_system(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The text of a row's own system message; None when it has none."""
    first = messages[0] if messages else {}
    return text_of(first) if first.get("role") in SYSTEM_ROLES else None


def read_prompt(path: str | Path) -> Prompt:
    """Read a prompt file: a JSON object with `system`, `examples` or both.

    Raises:
        InputError: It cannot be read, or is no prompt file; the message names the field.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; rftkit prompt optimize writes one")
    value = read_document(path)
    if not isinstance(value, dict) or not {"system", "examples"} & set(value):
        raise InputError(f'{path}: expected a prompt file, such as {{"system": "Answer in JSON."}}')
    system, replaces = value.get("system") or "", value.get("replaces")
    if not isinstance(system, str):
        raise InputError(f"{path}: `system` must be text")
    if replaces is not None and not isinstance(replaces, str):
        raise InputError(f"{path}: `replaces` must be text or null")
    examples = value.get("examples") or []
    _check_examples(examples, path)
    return Prompt(system, tuple(examples), replaces)


def write_prompt(path: str | Path, prompt: Prompt, **about: Any) -> None:
    """Write a prompt file; `about` says where it comes from, and is not read again."""
    value = {
        "system": prompt.system,
        "examples": list(prompt.examples),
        "replaces": prompt.replaces,
        **about,
    }
    write_whole(Path(path), json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def _check_examples(examples: Any, path: Path) -> None:
    if not isinstance(examples, list):
        raise InputError(f"{path}: `examples` must be a list of messages")
    for at, message in enumerate(examples):
        is_message = isinstance(message, dict) and message.get("role") in EXAMPLE_ROLES
        if not is_message or not isinstance(message.get("content"), str):
            raise InputError(
                f"{path}: `examples[{at}]` must be a message with text and the role user or "
                "assistant"
            )
    if examples and examples[-1]["role"] != "assistant":
        raise InputError(
            f"{path}: the last message of `examples` must be the assistant's, because the row's "
            "own messages follow"
        )
