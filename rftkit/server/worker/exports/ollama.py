"""The `Modelfile` for Ollama: the file, the chat template in Ollama's form, and the end tokens.

Ollama has its own template language, and guesses a template when none is given. This module derives
one: it renders chats whose contents are marks, and reads what the model's own template writes
around them. That works for templates that write every message in the same way, so the result is
checked by rendering chats with both; where they differ, the Modelfile has no template and says so.
This was not tried with Ollama itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["modelfile"]

MARK = "⟦{}⟧"
Chat = list[dict[str, str]]


@dataclass(frozen=True)
class _Form:
    """The texts that a chat template writes around messages."""

    begin: str
    """The text that is written once, before everything else."""
    around: dict[str, tuple[str, str]]
    """Role → text before and after the content."""
    opening: str
    """The text that opens the answer."""
    system: str | None
    """The system message of a chat that has none."""

    def render(self, chat: Chat) -> str:
        """A chat as Ollama will write it."""
        if self.system is not None and chat[0]["role"] != "system":
            chat = [{"role": "system", "content": self.system}, *chat]
        parts = ["".join((a, each["content"], b)) for each in chat for a, b in [self._of(each)]]
        return self.begin + "".join(parts) + self.opening

    def _of(self, message: dict[str, str]) -> tuple[str, str]:
        return self.around[message["role"]]


def modelfile(file: str, tokenizer: Any, end_tokens: Sequence[int], context_tokens: int) -> str:
    """The text of a Modelfile for the GGUF file `file` beside it."""
    lines = [f"FROM ./{file}", f"PARAMETER num_ctx {context_tokens}"]
    lines += [f"PARAMETER stop {_quoted(tokenizer.decode([end]))}" for end in end_tokens]
    form = _form_of(tokenizer)
    if form is None:
        note = (
            "# The chat template of this model cannot be written in Ollama's form by rftkit. "
            "Ollama guesses one; llama-server --jinja uses the model's own."
        )
        return "\n".join([note, *lines]) + "\n"
    branches = [
        f"if eq .Role {_quoted(role)} }}}}{before}{{{{ .Content }}}}{after}{{{{ "
        for role, (before, after) in form.around.items()
    ]
    loop = "{{ range .Messages }}{{ " + "else ".join(branches) + "end }}{{ end }}"
    begin = form.begin.removeprefix(tokenizer.bos_token or "")  # Ollama adds it automatically
    lines.append(f'TEMPLATE """{begin}{loop}{form.opening}"""')
    if form.system is not None:
        lines.append(f'SYSTEM """{form.system}"""')
    return "\n".join(lines) + "\n"


def _form_of(tokenizer: Any) -> _Form | None:
    """The template's form; None where it does not write every message alike."""
    try:
        form = _derived(tokenizer)
        chats = list(_chats("system" in form.around))
        if all(form.render(chat) == _rendered(tokenizer, chat) for chat in chats):
            return form
    except Exception:  # a template can raise anything, or drop the marks
        return None
    return None


def _derived(tokenizer: Any) -> _Form:
    """Derive the form: what follows a message is read off a chat that ends with it, and the rest
    comes before it.
    """
    marks = [MARK.format(number) for number in range(3)]
    chat: Chat = [
        {"role": role, "content": mark}
        for role, mark in zip(("user", "assistant", "user"), marks, strict=True)
    ]
    head, _, user_end = _rendered(tokenizer, chat[:1], opens=False).partition(marks[0])
    assistant_end = _rendered(tokenizer, chat[:2], opens=False).partition(marks[1])[2]
    whole = _rendered(tokenizer, chat, opens=False)
    to_assistant = whole.partition(marks[0])[2].partition(marks[1])[0]
    to_user = whole.partition(marks[1])[2].partition(marks[2])[0]
    around = {
        "user": (to_user.removeprefix(assistant_end), user_end),
        "assistant": (to_assistant.removeprefix(user_end), assistant_end),
    }
    opening = _rendered(tokenizer, chat)[len(whole) :]
    begin = head.removesuffix(around["user"][0])
    system, begin = _system(tokenizer, begin, around)
    return _Form(begin, around, opening, system)


def _system(
    tokenizer: Any, begin: str, around: dict[str, tuple[str, str]]
) -> tuple[str | None, str]:
    """Add the form of system messages; the system message that chats have by default, and `begin`.

    A template that refuses system messages, or writes them into the user's, has no such form.
    """
    text, other = MARK.format("s"), MARK.format(0)
    chat = [{"role": "system", "content": text}, {"role": "user", "content": other}]
    try:
        before, _, rest = _rendered(tokenizer, chat, opens=False).partition(text)
    except Exception:  # the template has no place for them
        return None, begin
    bos = tokenizer.bos_token or ""
    first = bos if begin.startswith(bos) and before.startswith(bos) else ""
    before = before.removeprefix(first)
    after = rest.partition(other)[0].removesuffix(around["user"][0])
    if not (before or after):
        return None, begin
    around["system"] = (before, after)
    default = begin.removeprefix(first)
    if not default:
        return None, first
    return default.removeprefix(before).removesuffix(after), first


def _chats(has_system: bool) -> list[Chat]:
    """Chats on which both ways of rendering are compared."""
    turns: Chat = [
        {"role": role, "content": text}
        for role, text in (("user", "Hi!"), ("assistant", "Hello."), ("user", "2 + 2?\nNow."))
    ]
    chats = [turns[:1], turns]
    if has_system:
        system = [{"role": "system", "content": "Be brief."}]
        chats += [system + turns[:1], system + turns]
    return chats


def _rendered(tokenizer: Any, chat: Chat, *, opens: bool = True) -> str:
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=opens))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
