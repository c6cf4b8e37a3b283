"""A tokenizer as GGUF stores it: tokens, their types, merges, and the name of its pre-tokenizer.

Two forms are written: byte-level BPE (`gpt2` in GGUF), and BPE that falls back to bytes, which is
what sentencepiece models are in transformers (`llama` in GGUF). llama.cpp has the pre-tokenizers of
byte-level BPE built in and goes by their names; which one a tokenizer has is found as llama.cpp's
own converter finds it, by the tokens that it makes of one long text. Another one is refused, since
a file that tokenizes differently answers differently.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from rftkit.errors import RftkitError

__all__ = ["add_tokenizer"]

CHECK_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis "
    "concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 "
    "កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български "
    "''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure "
    "I'll make it, 'D you like some tea? We'Ve a'lL"
)
"""The text of llama.cpp's converter (`get_vocab_base_pre` in its conversion/base.py, MIT)."""
PRE_TOKENIZERS = {
    "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5": "llama-bpe",
    "d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c": "qwen2",
    "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea": "qwen2",
    "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249": "smollm",
    "0fe1cf6eda062318a1af7270f3331a85c539a01778ff948e24388e949c5282f4": "gpt-2",
    "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454": "gpt-2",
    "b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5": "deepseek-r1-qwen",
    "049ecf7629871e3041641907f3de7c733e4dbfdc736f57d882ba0b0845599754": "deepseek-llm",
    "347715f544604f9118bb75ed199f68779f423cabb20db6de6f31b908d04d7821": "deepseek-coder",
    "63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e": "tekken",
    "35d91631860c815f952d711435f48d356ebac988362536bed955d43bfa436e34": "starcoder",
}
"""SHA-256 of the tokens of that text → llama.cpp's name; from the same function."""
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 and Llama 3 split a text; they differ in how many digits stay together."""
BY_PATTERN = {WORDS % r"\p{N}": "qwen2", WORDS % r"\p{N}{1,3}": "llama-bpe"}
NO_MERGES = "no merges"
"""llama.cpp loads no byte-level BPE without merges. This one joins "no" to "merges", and where
nothing else is joined there is no "no" of two letters."""
NORMALIZERS = {True: {"Prepend"}, False: {"NFC"}}
"""Normalizers of tokenizers that fall back to bytes, and of byte-level ones, that need no
translation: llama.cpp applies them too, or they hardly ever change a text (NFC of Qwen)."""
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def add_tokenizer(writer: Any, tokenizer: Any, num_tokens: int, *, adds_bos: bool) -> None:
    """Write a tokenizer into a GGUF file.

    Args:
        writer: a `gguf.GGUFWriter`.
        tokenizer: of transformers.
        num_tokens: of the model's embeddings, which may be more than the tokenizer has.
        adds_bos: whether chats begin with the token that begins texts.

    Raises:
        RftkitError: llama.cpp has no such tokenizer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise _refused("it is not one of the `tokenizers` library")
    form = json.loads(tokenizer.backend_tokenizer.to_str())
    model = form["model"]
    if model.get("type") != "BPE":
        raise _refused(f"it is {model.get('type')}, and only BPE is written")
    if changes := _normalizers(form) - NORMALIZERS[bool(model.get("byte_fallback"))]:
        raise _refused(f"it changes texts before it splits them ({', '.join(sorted(changes))})")
    tokens, types = _tokens(tokenizer, num_tokens)
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix(_adds_space(form))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(tokenizer, form))
        writer.add_token_list(tokens)
        writer.add_token_merges(merges or [NO_MERGES])
    writer.add_token_types(types)
    for name, add in (
        ("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id),
        ("unk", writer.add_unk_token_id), ("pad", writer.add_pad_token_id),
    ):  # fmt: skip
        if (token := getattr(tokenizer, f"{name}_token_id")) is not None:
            add(token)
    writer.add_add_bos_token(adds_bos)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _tokens(tokenizer: Any, num_tokens: int) -> tuple[list[str], list[int]]:
    """The text and the type of each token, by its id."""
    import gguf

    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(by_id) >= num_tokens:
        raise _refused(f"it has token {max(by_id)}, and the model has {num_tokens}")
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(num_tokens):
        token = by_id.get(number)
        kind = gguf.TokenType.NORMAL
        if token is None:
            token, kind = f"[PAD{number}]", gguf.TokenType.UNUSED
        elif number in added:
            is_control = added[number].special
            kind = gguf.TokenType.CONTROL if is_control else gguf.TokenType.USER_DEFINED
        elif BYTE.fullmatch(token):
            kind = gguf.TokenType.BYTE
        tokens.append(token)
        types.append(int(kind))
    return tokens, types


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Scores that make llama.cpp join in the order of the merges: the earlier, the higher."""
    rank: dict[str, int] = {}
    for number, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", "", 1), number)
    return [float(-rank.get(token, len(merges))) for token in tokens]


def _normalizers(form: dict[str, Any]) -> set[str]:
    """The normalizers of a text, besides the space that becomes ▁ and the one in front."""
    given = form.get("normalizer") or {"normalizers": []}
    return {
        each["type"]
        for each in given.get("normalizers", [given])
        if each.get("content") not in ("▁", "▁▁")
    }


def _adds_space(form: dict[str, Any]) -> bool:
    """Whether a text gets a space in front, as the normalizer or the pre-tokenizer says."""
    text = json.dumps([form.get("normalizer"), form.get("pre_tokenizer")], ensure_ascii=False)
    return (
        '"Prepend"' in text
        or '"prepend_scheme": "first"' in text
        or ('"prepend_scheme": "always"' in text)
    )


def _pre_tokenizer(tokenizer: Any, form: dict[str, Any]) -> str:
    ids = tokenizer(CHECK_TEXT)["input_ids"]
    found = PRE_TOKENIZERS.get(hashlib.sha256(str(ids).encode()).hexdigest())
    if found is not None:
        return found
    found = _by_form(form)
    if found is not None:
        return found
    raise _refused("llama.cpp has no name for its pre-tokenizer that rftkit knows")


def _by_form(form: dict[str, Any]) -> str | None:
    """The same for vocabularies that are not in the table, by what their pre-tokenizer does."""
    steps = form.get("pre_tokenizer") or {}
    *first, last = steps.get("pretokenizers", [steps])
    if last.get("type") != "ByteLevel":
        return None
    kinds = [each.get("type") for each in first]
    if last.get("use_regex", True):
        return {(): "gpt-2", ("Digits",): "smollm"}.get(tuple(kinds))
    if kinds == ["Split"]:
        return BY_PATTERN.get(str(first[0].get("pattern", {}).get("Regex")))
    # Without merges every byte is a token, wherever the text is split.
    return "gpt-2" if not kinds and not form["model"]["merges"] else None


def _refused(why: str) -> RftkitError:
    return RftkitError(
        f"the tokenizer cannot be written as GGUF: {why}. Export the model with --format merged, "
        "and convert that folder with llama.cpp's convert_hf_to_gguf.py"
    )
