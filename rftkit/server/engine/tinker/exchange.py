"""Translation between the Tinker protocol and ours: completions, data of an update, archives.
Tokens become text here, because the protocol can stop at tokens or texts but has no reasoning. The
metrics of an update come from the log-probs that the server computed before it. Pure, except for
the files of an archive. Calls and sessions are in `calls`.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from rftkit.errors import EngineLostError
from rftkit.jsontext import parse_json
from rftkit.server.engine import prompts
from rftkit.server.engine.call_forms import answer_text
from rftkit.server.engine.values import (
    Completion,
    SampleRequest,
    StepStats,
    Text,
    TextStats,
    TrainGroup,
    TrainSettings,
)

__all__ = [
    "Member", "completion_of", "inputs_of", "members_of", "stats_of", "text_inputs_of",
    "text_stats_of", "unpack_adapter",
]  # fmt: skip

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class Member(NamedTuple):
    """One completion of an update."""

    prompt: list[int]
    tokens: list[int]
    sampling_logprobs: list[float]
    advantages: list[float]
    """The advantage of each token."""


# ── completions ──────────────────────────────────────────────────────────────────────────────


def completion_of(
    tokenizer: Any, eos_ids: frozenset[int], request: SampleRequest, sequence: Any
) -> Completion:
    """Turn a sequence of the server into a completion, without stop texts and reasoning.

    Raises:
        EngineLostError: when it does not have one log-prob for each token.
    """
    tokens, logprobs = list(sequence.tokens), list(sequence.logprobs or ())
    if len(tokens) != len(logprobs):
        raise EngineLostError(
            f"the Tinker server gave {len(tokens)} tokens and {len(logprobs)} log-probs for one "
            "completion"
        )
    ended = sequence.stop_reason == "stop" or (tokens and tokens[-1] in eos_ids)
    stop_reason: Literal["stop", "length"] = "stop" if ended else "length"
    for stop in request.stop:
        if (count := prompts.tokens_until(tokenizer, tokens, stop)) is not None:
            tokens, logprobs, stop_reason = tokens[:count], logprobs[:count], "stop"
    num_reasoning = 0
    if request.thinking is not None:
        found = prompts.tokens_until(tokenizer, tokens, request.thinking.end)
        num_reasoning = len(tokens) if found is None else found
    reasoning = tokenizer.decode(tokens[:num_reasoning])
    text = answer_text(tokenizer, tokens[num_reasoning:])
    if request.thinking is not None:
        reasoning, _, rest = reasoning.partition(request.thinking.end)
        text = (rest + text).lstrip()
    for stop in request.stop:
        text = text.partition(stop)[0]
    return Completion(
        tokens=tokens,
        text=text,
        sampling_logprobs=logprobs,
        stop_reason=stop_reason,
        reasoning=reasoning.strip() if request.thinking else "",
        reasoning_tokens=num_reasoning,
    )


# ── updates ──────────────────────────────────────────────────────────────────────────────────


def members_of(groups: Sequence[TrainGroup]) -> list[Member]:
    """The completions of all groups, one after the other."""
    return [
        Member(group.prompt_ids, *each)
        for group in groups
        for each in zip(
            group.tokens_G_T, group.sampling_logprobs_G_T, group.token_advantages(), strict=True
        )
    ]


def inputs_of(member: Member, num_tokens: int) -> dict[str, Any]:
    """The inputs of the protocol's loss for a completion; positions before it have weight 0.

    The protocol's losses are sums over tokens; advantages are divided by the batch's tokens here,
    which makes them the means that `loss.py` has.
    """
    before = [0.0] * (len(member.prompt) - 1)
    return {
        "target_tokens": [*member.prompt[1:], *member.tokens],
        "logprobs": [*before, *member.sampling_logprobs],
        "advantages": [*before, *(each / num_tokens for each in member.advantages)],
    }


def stats_of(
    members: Sequence[Member],
    policy_logprobs: Sequence[Sequence[float]],
    settings: TrainSettings,
    metrics: dict[str, float],
) -> StepStats:
    """What the update measured, from the log-probs the server computed before it.

    Raises:
        FloatingPointError: when one of them is not a number.
    """
    loss, clipped, entropy, gaps = 0.0, 0, 0.0, []
    for member, policy in zip(members, policy_logprobs, strict=True):
        for before, now, advantage in zip(
            member.sampling_logprobs, policy, member.advantages, strict=True
        ):
            if not math.isfinite(now):
                raise FloatingPointError("the server's log-prob of a sampled token is not finite")
            ratio = math.exp(min(now - before, 50.0))
            bounded = min(max(ratio, 1 - settings.clip_low), 1 + settings.clip_high)
            free, cut = ratio * advantage, bounded * advantage
            clips = settings.loss == "clipped" and cut < free
            loss -= cut if clips else free
            clipped += clips
            entropy -= before
            gaps.append(abs(now - before))
    num_tokens = max(1, len(gaps))
    return StepStats(
        loss=loss / num_tokens,
        grad_norm=_grad_norm(metrics),
        clip_fraction=clipped / num_tokens,
        entropy=entropy / num_tokens,
        kl=None,
        logprob_gap_mean=sum(gaps) / num_tokens,
        logprob_gap_max=max(gaps, default=0.0),
        num_tokens=len(gaps),
    )


def _grad_norm(metrics: dict[str, float]) -> float | None:
    """Servers prefix the name (`skyrl.ai/grad_norm`) or append how parts were joined (`…:mean`)."""
    for name, value in metrics.items():
        if name.rpartition("/")[2].partition(":")[0] == "grad_norm":
            return value
    return None


def text_inputs_of(text: Text, num_tokens: int) -> dict[str, Any]:
    """What the protocol's cross entropy needs of a text: the weights make the sum a mean."""
    weights = [float(is_trained) / num_tokens for is_trained in text.trained[1:]]
    return {"target_tokens": text.tokens[1:], "weights": weights}


def text_stats_of(
    texts: Sequence[Text], logprobs: Sequence[Sequence[float]], metrics: dict[str, float]
) -> TextStats:
    """The mean −log-prob of trained tokens, from the log-probs that the server computed.

    Raises:
        FloatingPointError: when one of them is not a number.
    """
    trained = [
        logprob
        for text, each in zip(texts, logprobs, strict=True)
        for logprob, is_trained in zip(each, text.trained[1:], strict=True)
        if is_trained
    ]
    loss = -sum(trained) / max(len(trained), 1)
    if not math.isfinite(loss):
        raise FloatingPointError("the server's log-prob of a trained token is not finite")
    return TextStats(loss, None, len(trained), _grad_norm(metrics))


# ── archives ─────────────────────────────────────────────────────────────────────────────────


def unpack_adapter(archive: IO[bytes], folder: Path) -> None:
    """Take the PEFT files out of a tar as it streams by, into a folder; all of them or none.

    Other archives are left at their first large file: some backends pack the whole merged model.

    Raises:
        OSError: when the stream ends early.
        tarfile.TarError: when it is no tar.
        ValueError: when its files are not what PEFT writes.
    """
    try:
        with tarfile.open(fileobj=archive, mode="r|*") as tar:
            for member in tar:
                name = Path(member.name).name
                if member.isfile() and name in ADAPTER_FILES:
                    with (folder / name).open("wb") as file:
                        shutil.copyfileobj(tar.extractfile(member), file)  # type: ignore[arg-type]
                elif name.endswith((".safetensors", ".bin")):
                    break
        _name_modules(folder)
    except BaseException:
        for name in ADAPTER_FILES:  # a partial adapter is worse than none
            (folder / name).unlink(missing_ok=True)
        raise


def _name_modules(folder: Path) -> None:
    """Write into the config which layers have adapters; without that, PEFT chooses layers itself.

    SkyRL's JAX backend leaves `target_modules` out.
    """
    path, weights = (folder / name for name in ADAPTER_FILES)
    description = parse_json(path.read_bytes())
    with weights.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        names = parse_json(file.read(size))
    modules = {name.partition(".lora_")[0].rpartition(".")[2] for name in names if ".lora_" in name}
    if not modules:
        raise ValueError("the archive's weights have no adapters")
    description["target_modules"] = sorted(modules)
    path.write_text(json.dumps(description, indent=2) + "\n")
