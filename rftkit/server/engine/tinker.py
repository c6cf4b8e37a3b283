"""The engine on other machines: the four primitives over the Tinker protocol.

SkyRL, Thinking Machines' service and Open-RL serve the protocol; the official `tinker` client
speaks it. Prompts are encoded here, with the model's own tokenizer; weights, optimizer and sampling
are the server's. A saved policy is a small file that names what the server keeps. What the protocol
lacks is in `remote.py`: it is refused before a job starts, or said in the job's events. Not here:
grading, journals and checkpoints, which are the same for every engine.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any, Literal

from rftkit.errors import EngineLostError, InputError, MissingExtraError, RftkitError
from rftkit.server.engine import models, prompts
from rftkit.server.engine.base import (
    Adapter,
    Completion,
    LoraConfig,
    SampleRequest,
    StepStats,
    Thinking,
    TrainGroup,
    TrainSettings,
)
from rftkit.server.engine.remote import STATE, Remote, differences

__all__ = ["TinkerEngine"]

IN_FLIGHT = 256
"""Most prompts that wait for the server at once."""
POLL_SECONDS = 0.02
LOSSES = {"clipped": "ppo", "importance_sampling": "importance_sampling"}
"""Our names of losses, and the protocol's."""
BETAS = (0.9, 0.99)
EPS = 1e-8


class TinkerEngine:
    """One base model of a Tinker server, and one policy being trained there."""

    def __init__(self, remote: Remote, *, name: str, api_key: str | None = None) -> None:
        """Connect to the server.

        Raises:
            MissingExtraError: without the `tinker` package.
            InputError: when the tokenizer is not on this machine.
            EngineLostError: when the server does not answer, or does not serve the model.
        """
        try:
            import tinker
        except ImportError as error:
            raise MissingExtraError("tinker", "tinker") from error
        self.name = name
        self.remote = remote
        self._tinker = tinker
        self.tokenizer, config, generation = _texts(remote.tokenizer)
        self.eos_ids = models.end_tokens(self.tokenizer, generation)
        self.memory_bytes: int | None = None
        self.context_tokens = int(getattr(config, "max_position_embeddings", None) or 32_768)
        self.num_tokens = int(config.vocab_size)
        self.thinking = prompts.thinking_mark(self.tokenizer)
        with self._reaching():
            # The client wants a key of its own form; servers without accounts take any.
            key = api_key or "tml-rftkit"
            self._service = tinker.ServiceClient(base_url=remote.url, api_key=key)
            known = self._service.get_server_capabilities().supported_models
        served = [model.model_name for model in known]
        if remote.model not in served:
            raise EngineLostError(
                f"the Tinker server {remote.url} does not serve {remote.model!r}; it serves "
                f"{', '.join(map(str, served))}"
            )
        self._training: Any = None
        self._lora = LoraConfig()
        self._samplers: dict[str, Any] = {}
        self._fresh: Any = None

    @functools.cached_property
    def grammars(self) -> Any:
        """Compiled schemas: to refuse what is no schema. The server does not decode under them."""
        from rftkit.server.engine.grammar import Grammars

        return Grammars(self.tokenizer, self.num_tokens, sorted(self.eos_ids))

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the numbers besides the seed."""
        return {
            "engine": "tinker",
            "server": self.remote.url,
            "model": self.remote.model,
            "tinker": self._tinker.__version__,
        }

    # ── prompts ──────────────────────────────────────────────────────────────────────────────

    def encode(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        thinking: str | None = None,
    ) -> list[int]:
        """See Engine.encode."""
        return prompts.encode(self.tokenizer, messages, tools, thinking)

    def notes(self, schema: str | None, thinking: Thinking | None) -> list[str]:
        """See Engine.notes."""
        return differences(schema is not None, thinking is not None)

    def embed(self, inputs: Sequence[Sequence[int]], adapter: Adapter) -> list[list[float]]:
        """The protocol has no hidden states.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"{self.name} runs on a Tinker server, which gives no embeddings; name a model of "
            "this machine, such as smollm2-135m-instruct",
            param="model",
        )

    # ── the policy ───────────────────────────────────────────────────────────────────────────

    def start_policy(self, config: LoraConfig, seed: int, adapter: Path | None = None) -> None:
        """See Engine.start_policy."""
        self.drop_policy()
        with self._reaching():
            if adapter is not None:
                path = _saved(adapter)["state"]
                self._training = self._service.create_training_client_from_state(path)
            else:
                self._training = self._service.create_lora_training_client(
                    base_model=self.remote.model,
                    rank=config.rank,
                    seed=seed,
                    train_unembed=False,
                )
        self._lora = config

    def drop_policy(self) -> None:
        """Forget the policy; what the server saved of it stays there."""
        self._training, self._fresh = None, None

    def save(self, folder: Path) -> None:
        """See Engine.save: the server keeps the weights, the folder their names."""
        self._write(folder, state=self._kept("save_state", folder))

    def save_adapter(self, folder: Path) -> None:
        """See Engine.save_adapter; with a PEFT folder beside the name where the server gives one.

        The state is kept too, so that another job can start from this model.
        """
        sampler = self._kept("save_weights_for_sampler", folder)
        self._write(folder, state=self._kept("save_state", folder), sampler=sampler)
        self._download(sampler, folder)

    def load(self, folder: Path) -> None:
        """See Engine.load."""
        saved = _saved(folder)
        self.drop_policy()
        with self._reaching():
            create = self._service.create_training_client_from_state_with_optimizer
            self._training = create(saved["state"])
        self._lora = LoraConfig(**saved["lora"])

    def _write(self, folder: Path, **paths: str) -> None:
        lora = {"rank": self._lora.rank, "alpha": self._lora.alpha}
        saved = {"server": self.remote.url, "model": self.remote.model, "lora": lora, **paths}
        (folder / STATE).write_text(json.dumps(saved))

    def _kept(self, method: str, folder: Path) -> str:
        """Ask the server to keep the policy; under what path it does."""
        # A name of its own each time: servers refuse one that they have, a kill may repeat a save.
        name = f"{folder.name.strip('.')}-{time.time_ns():x}"[-60:]
        with self._reaching():
            return str(getattr(self._policy(), method)(name).result().path)

    def _download(self, sampler: str, folder: Path) -> None:
        """Unpack the server's archive, a PEFT folder, if it offers one."""
        archive = folder / "adapter.tar"
        try:
            rest = self._service.create_rest_client()
            url = rest.get_checkpoint_archive_url_from_tinker_path(sampler).result().url
            with urllib.request.urlopen(url, timeout=600) as answer, archive.open("wb") as file:
                while block := answer.read(1 << 20):
                    file.write(block)
            with tarfile.open(archive) as tar:
                for member in tar.getmembers():
                    name = Path(member.name).name
                    if member.isfile() and name.startswith("adapter_"):
                        member.name = name
                        tar.extract(member, folder, filter="data")
        except (self._tinker.TinkerError, OSError, tarfile.TarError, ValueError):
            for part in folder.glob("adapter_*"):  # half an adapter is worse than none
                part.unlink()
        finally:
            archive.unlink(missing_ok=True)

    def _policy(self) -> Any:
        if self._training is None:
            raise RuntimeError("no policy: call start_policy or load first")
        return self._training

    # ── sampling ─────────────────────────────────────────────────────────────────────────────

    def sample(
        self,
        requests: Sequence[SampleRequest],
        adapter: Adapter | Literal["policy"] = "policy",
        *,
        breathe: Callable[[], None] | None = None,
        on_text: Callable[[int, int, str], None] | None = None,
    ) -> list[list[Completion]]:
        """See Engine.sample: many prompts in flight, at most IN_FLIGHT; text comes when whole."""
        results: list[list[Completion]] = [[] for _ in requests]
        with self._reaching():
            sampler = self._sampler(adapter)
            for i, answer in _in_flight(
                (functools.partial(self._ask, sampler, each) for each in requests), breathe
            ):
                results[i] = [self._completion(requests[i], each) for each in answer.sequences]
                if on_text is not None:
                    for index, completion in enumerate(results[i]):
                        on_text(i, index, completion.text)
        return results

    def _sampler(self, adapter: Adapter | Literal["policy"]) -> Any:
        if adapter == "policy":
            if self._fresh is None:
                self._fresh = self._policy().save_weights_and_get_sampling_client()
            return self._fresh
        path = "" if adapter is None else _saved(Path(adapter))["sampler"]
        if path not in self._samplers:
            source = {"model_path": path} if path else {"base_model": self.remote.model}
            self._samplers[path] = self._service.create_sampling_client(**source)
        return self._samplers[path]

    def _ask(self, sampler: Any, request: SampleRequest) -> Future[Any]:
        if request.num_top_logprobs:
            raise InputError(
                f"{self.name} runs on a Tinker server, which gives no top_logprobs",
                param="top_logprobs",
            )
        key = json.dumps(request.seeds).encode()
        params = self._tinker.SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            stop=sorted(self.eos_ids),
            seed=int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> 1,
        )
        future: Future[Any] = sampler.sample(
            self._tinker.ModelInput.from_ints(request.prompt_ids),
            num_samples=len(request.seeds),
            sampling_params=params,
        )
        return future

    def _completion(self, request: SampleRequest, sequence: Any) -> Completion:
        tokens, logprobs = list(sequence.tokens), list(sequence.logprobs)
        if len(tokens) != len(logprobs):
            raise EngineLostError(
                f"the Tinker server {self.remote.url} gave {len(tokens)} tokens and "
                f"{len(logprobs)} log-probs for one completion"
            )
        ended = sequence.stop_reason == "stop" or (tokens and tokens[-1] in self.eos_ids)
        stop_reason: Literal["stop", "length"] = "stop" if ended else "length"
        for stop in request.stop:  # the protocol stops at tokens or at texts, not at both
            if (count := self._first(tokens, stop)) is not None:
                tokens, logprobs, stop_reason = tokens[:count], logprobs[:count], "stop"
        num_thoughts = 0
        if request.thinking is not None:
            found = self._first(tokens, request.thinking.end)
            num_thoughts = len(tokens) if found is None else found
        thoughts = self.tokenizer.decode(tokens[:num_thoughts])
        text = self.tokenizer.decode(tokens[num_thoughts:], skip_special_tokens=True)
        if request.thinking is not None:
            thoughts, _, rest = thoughts.partition(request.thinking.end)
            text = (rest + text).lstrip()
        for stop in request.stop:
            text = text.partition(stop)[0]
        return Completion(
            tokens=tokens,
            text=text,
            sampling_logprobs=logprobs,
            stop_reason=stop_reason,
            reasoning=thoughts.strip() if request.thinking else "",
            reasoning_tokens=num_thoughts,
        )

    def _first(self, tokens: list[int], text: str) -> int | None:
        """How many of the tokens it takes to say `text`; None when they do not."""
        if text not in self.tokenizer.decode(tokens):
            return None
        low, high = 1, len(tokens)
        while low < high:
            middle = (low + high) // 2
            has = text in self.tokenizer.decode(tokens[:middle])
            low, high = (low, middle) if has else (middle + 1, high)
        return low

    # ── training ─────────────────────────────────────────────────────────────────────────────

    def train_step(
        self,
        groups: Sequence[TrainGroup],
        settings: TrainSettings,
        *,
        breathe: Callable[[], None] | None = None,
    ) -> StepStats:
        """See Engine.train_step. The update is sent along with the gradient, so that one waits.

        The protocol's losses are sums over tokens; advantages are divided by the batch's tokens
        here, which makes them the means that `loss.py` has.
        """
        members = [
            (group.prompt_ids, tokens, logprobs, advantage)
            for group in groups
            for tokens, logprobs, advantage in zip(
                group.tokens_G_T, group.sampling_logprobs_G_T, group.advantages_G, strict=True
            )
        ]
        num_tokens = sum(len(tokens) for _, tokens, _, _ in members)
        data = [self._datum(*member, num_tokens) for member in members]
        config = None
        if settings.loss == "clipped":
            config = {
                "clip_low_threshold": 1 - settings.clip_low,
                "clip_high_threshold": 1 + settings.clip_high,
            }
        adam = self._tinker.AdamParams(
            learning_rate=settings.learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            eps=EPS,
            grad_clip_norm=settings.max_grad_norm,
        )
        with self._reaching():
            policy = self._policy()
            gradient = policy.forward_backward(data, LOSSES[settings.loss], config).future()
            update = policy.optim_step(adam).future()
            self._fresh = None
            _wait([gradient, update], breathe)
            outputs, after = gradient.result().loss_fn_outputs, update.result()
        policy_logprobs = [
            list(output["logprobs"].data)[len(prompt) - 1 :]
            for output, (prompt, _, _, _) in zip(outputs, members, strict=True)
        ]
        return _stats(members, policy_logprobs, settings, getattr(after, "metrics", None) or {})

    def _datum(
        self,
        prompt: list[int],
        tokens: list[int],
        logprobs: list[float],
        advantage: float,
        num_tokens: int,
    ) -> Any:
        before = [0.0] * (len(prompt) - 1)
        inputs: Any = {
            "target_tokens": [*prompt[1:], *tokens],
            "logprobs": [*before, *logprobs],
            "advantages": [*before, *[advantage / num_tokens] * len(tokens)],
        }
        read = self._tinker.ModelInput.from_ints([*prompt, *tokens[:-1]])
        return self._tinker.Datum(model_input=read, loss_fn_inputs=inputs)

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Say of a failed call which server it was.

        Raises:
            EngineLostError: the server is away, or has forgotten what was on it.
        """
        from tinker.lib.retryable_exception import RetryableException

        try:
            yield
        except RftkitError:
            raise
        except (self._tinker.TinkerError, RetryableException, ValueError, OSError) as error:
            # The client has retried for minutes; what is not to be retried comes as ValueError.
            raise EngineLostError(
                f"the Tinker server {self.remote.url} failed: {str(error)[:500] or type(error)}"
            ) from error


def _texts(source: str) -> tuple[Any, Any, Any]:
    """Tokenizer, config and generation config of a model, from this machine."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    try:
        tokenizer, config = (
            AutoTokenizer.from_pretrained(source),
            AutoConfig.from_pretrained(source),
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"the tokenizer of {source} is not on this machine; give its folder with "
            "--tinker-tokenizer FOLDER (tokenizer files and config.json, no weights)",
            param="model",
        ) from error
    try:
        return tokenizer, config, GenerationConfig.from_pretrained(source)
    except OSError:
        return tokenizer, config, None


def _saved(folder: Path) -> dict[str, Any]:
    if not (folder / STATE).is_file():
        raise InputError(
            "the model's weights are on this machine, and a Tinker server takes none from outside; "
            "start from its base model, or train here with metadata `engine` = torch",
            param="model",
        )
    saved: dict[str, Any] = json.loads((folder / STATE).read_text())
    return saved


def _in_flight(
    asks: Iterator[Callable[[], Future[Any]]], breathe: Callable[[], None] | None
) -> Iterator[tuple[int, Any]]:
    """(place, answer) as answers come, with at most IN_FLIGHT under way."""
    numbered = enumerate(asks)
    under_way: dict[Future[Any], int] = {}
    while True:
        for i, ask in numbered:
            under_way[ask()] = i
            if len(under_way) >= IN_FLIGHT:
                break
        if not under_way:
            return
        done, _ = wait(under_way, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            yield under_way.pop(future), future.result()
        if breathe is not None:
            breathe()


def _wait(futures: Sequence[Future[Any]], breathe: Callable[[], None] | None) -> None:
    while wait(futures, timeout=POLL_SECONDS).not_done:
        if breathe is not None:
            breathe()


def _stats(
    members: Sequence[tuple[list[int], list[int], list[float], float]],
    policy_logprobs: Sequence[Sequence[float]],
    settings: TrainSettings,
    metrics: dict[str, float],
) -> StepStats:
    """What the update measured, from the log-probs the server computed before it.

    Raises:
        FloatingPointError: when one of them is not a number.
    """
    loss, clipped, entropy, gaps = 0.0, 0, 0.0, []
    for (_, _, sampling, advantage), policy in zip(members, policy_logprobs, strict=True):
        for before, now in zip(sampling, policy, strict=True):
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
        grad_norm=metrics.get("grad_norm", metrics.get("grad_norm:mean")),
        clip_fraction=clipped / num_tokens,
        entropy=entropy / num_tokens,
        kl=None,
        logprob_gap_mean=sum(gaps) / num_tokens,
        logprob_gap_max=max(gaps, default=0.0),
        num_tokens=len(gaps),
    )
