"""The engine on other machines: the four primitives over the Tinker protocol.

SkyRL, Thinking Machines' service and Open-RL serve the protocol, and the official `tinker` client
calls it. Prompts are encoded here, with the model's own tokenizer. The server holds the weights and
the optimizer, and it samples. A saved policy is a small file that names what the server keeps. What
the protocol lacks is in `remote`: it is refused before a job starts, or stated in the job's events.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

from rftkit.errors import EngineLostError, InputError, MissingExtraError, RftkitError
from rftkit.server.engine import models, prompts
from rftkit.server.engine.base import Environment, Listener
from rftkit.server.engine.prompting import Prompting
from rftkit.server.engine.tinker import clients, exchange
from rftkit.server.engine.tinker.calls import Policy, end_sessions, in_flight, wait_for
from rftkit.server.engine.tinker.remote import LOSS_NAMES, STATE, Remote, differences
from rftkit.server.engine.values import (
    Adapter,
    Completion,
    FullNeeds,
    LoraConfig,
    Pair,
    PairStats,
    SampleRequest,
    StepStats,
    Text,
    TextStats,
    Thinking,
    TrainGroup,
    TrainSettings,
)

__all__ = ["TinkerEngine"]

REFUSALS = (400, 401, 403, 422)
"""Status codes of a request that will never succeed; others may, after the server comes back."""
BETAS = (0.9, 0.99)
EPS = 1e-12
"""Far below any gradient. Servers scale gradients differently (SkyRL's JAX backend divides by the
number of completions), and Adam's step does not depend on that scale as long as eps is small."""


class _Sampling:
    """See base.Sampling. Requests that join wait until those before them have ended."""

    def __init__(self, engine: TinkerEngine, adapter: Adapter) -> None:
        self._engine, self._adapter = engine, adapter
        self._waiting: dict[int, tuple[SampleRequest, Listener]] = {}

    def join(self, number: int, request: SampleRequest, listener: Listener) -> None:
        """See base.Sampling."""
        self._waiting[number] = (request, listener)

    def drop(self, number: int) -> None:
        """Stop passing on a request; the server finishes the tokens that it has begun (see
        base.Sampling).
        """
        self._waiting.pop(number, None)

    def advance(self, seconds: float, until: Callable[[], bool]) -> bool:
        """See base.Sampling: the server samples all at once, however long that takes."""
        started, self._waiting = list(self._waiting.values()), {}
        self._engine.sample(
            [request for request, _ in started],
            self._adapter,
            on_text=lambda place, index, text: _streamed(started[place][1], index, text),
            on_completion=lambda place, *ended: started[place][1].on_completion(*ended),
        )
        return bool(self._waiting)


def _streamed(listener: Listener, index: int, text: str) -> None:
    if listener.streams:
        listener.on_text(index, text)


class TinkerEngine(Prompting):
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
        self.width: int | None = getattr(config, "hidden_size", None)
        self.thinking = prompts.thinking_mark(self.tokenizer)
        # The client requires a key in its own format; servers without accounts accept any.
        self._account: dict[str, Any] = {"base_url": remote.url, "api_key": api_key or "tml-rftkit"}
        self._connect = functools.partial(tinker.ServiceClient, **self._account)
        self._policy: Policy | None = None
        self._asked: tuple[str, Policy] | None = None
        self._lora = LoraConfig()
        with self._reaching():
            self._service = self._connect()
            served = clients.supported_models(self._service, **self._account)
        if remote.model not in served:
            self.close()
            raise EngineLostError(
                f"the Tinker server {remote.url} does not serve {remote.model!r}; it serves "
                f"{', '.join(served)}"
            )

    @functools.cached_property
    def grammars(self) -> Any:
        """Compiled schemas, only to refuse invalid ones: the server decodes without them."""
        from rftkit.server.engine.grammar import Grammars

        return Grammars(self.tokenizer, self.num_tokens, sorted(self.eos_ids))

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that decide the numbers, in addition to the seed."""
        return {
            "engine": "tinker",
            "server": self.remote.url,
            "model": self.remote.model,
            "tinker": self._tinker.__version__,
        }

    def close(self) -> None:
        """End every session with the server; what it saved stays there."""
        self.drop_policy()
        self._stop_asking()
        end_sessions(self._service)

    # ── prompts ──────────────────────────────────────────────────────────────────────────────

    def encode_answer(self, text: str, schema: str | None) -> list[int] | None:
        """A job that asks for guidance was refused (`remote.refuse`)."""
        raise NotImplementedError

    def notes(
        self, schema: str | None, thinking: Thinking | None, *, full: bool = False
    ) -> list[str]:
        """See Engine.notes."""
        return differences(schema is not None, thinking is not None)

    def embed(self, inputs: Sequence[list[int]], adapter: Adapter = None) -> list[list[float]]:
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

    def compare(self, prompts: Sequence[list[int]]) -> str | None:
        """See Engine.compare: the server samples and trains."""
        return None

    def full_needs(self) -> FullNeeds:
        """The protocol trains adapters; a job that asks for more was refused (`remote.refuse`)."""
        raise NotImplementedError

    def start_policy(
        self, config: LoraConfig | None, seed: int, adapter: Path | None = None
    ) -> None:
        """See Engine.start_policy."""
        assert config is not None  # `full_needs`
        self.drop_policy()
        if adapter is not None:
            self._policy, config = self._loaded(_saved(adapter))
        else:
            self._policy = self._made(config.rank, seed)
        self._lora = config

    def drop_policy(self) -> None:
        """Forget the policy; what the server saved of it stays there."""
        if self._policy is not None:
            self._policy.end()
        self._policy = None

    def save(self, folder: Path) -> None:
        """See Engine.save: the server keeps the weights, the folder their names."""
        self._write(folder, state=self._kept("save_state", folder))

    def save_adapter(self, folder: Path) -> None:
        """See Engine.save_adapter; with a PEFT folder beside the name if the server offers one.

        The state is saved too, because other jobs start from it and chats sample from it.
        """
        sampler = self._kept("save_weights_for_sampler", folder)
        self._write(folder, state=self._kept("save_state", folder), sampler=sampler)
        self._download(sampler, folder)

    def load(self, folder: Path) -> None:
        """See Engine.load."""
        saved = _saved(folder)
        self.drop_policy()
        self._policy, self._lora = self._loaded(saved, with_optimizer=True)

    def _made(self, rank: int, seed: int) -> Policy:
        return self._started(
            lambda service: service.create_lora_training_client(
                base_model=self.remote.model, rank=rank, seed=seed, train_unembed=False
            )
        )

    def _loaded(
        self, saved: dict[str, Any], *, with_optimizer: bool = False
    ) -> tuple[Policy, LoraConfig]:
        """A new policy with saved weights."""
        lora = LoraConfig(**saved["lora"])
        policy = self._started(
            lambda service: clients.from_state(
                service,
                saved["state"],
                base_model=self.remote.model,
                rank=lora.rank,
                with_optimizer=with_optimizer,
            )
        )
        return policy, lora

    def _started(self, make: Callable[[Any], Any]) -> Policy:
        """A policy in a session of its own."""
        with self._reaching():
            service = self._connect()
            try:
                return Policy(service, clients.client_of(make(service)))
            except BaseException:
                end_sessions(service)
                raise

    def _current(self) -> Policy:
        if self._policy is None:
            raise RuntimeError("no policy: call start_policy or load first")
        return self._policy

    def _write(self, folder: Path, **paths: str) -> None:
        lora = {"rank": self._lora.rank, "alpha": self._lora.alpha}
        saved = {"server": self.remote.url, "model": self.remote.model, "lora": lora, **paths}
        (folder / STATE).write_text(json.dumps(saved))

    def _kept(self, method: str, folder: Path) -> str:
        """Ask the server to save the policy, and return the path it is saved under."""
        # A new name each time: servers refuse a known name, and a kill may repeat a save.
        name = f"{folder.name.strip('.')}-{time.time_ns():x}"[-60:]
        with self._reaching():
            return str(getattr(self._current().training, method)(name).result().path)

    def _download(self, sampler: str, folder: Path) -> None:
        """Unpack the server's archive, if it offers one and has a PEFT folder in it."""
        with contextlib.suppress(OSError, tarfile.TarError, ValueError):
            # The id is `sampler_weights/NAME`; SkyRL leaves the kind out, in paths and in ids.
            run, _, checkpoint = sampler.removeprefix("tinker://").partition("/")
            key = self._account["api_key"]
            with clients.open_archive(self.remote.url, key, run, checkpoint) as archive:
                exchange.unpack_adapter(archive, folder)

    # ── sampling ─────────────────────────────────────────────────────────────────────────────

    def sample(
        self,
        requests: Sequence[SampleRequest],
        adapter: Adapter | Literal["policy"] = "policy",
        *,
        on_tick: Callable[[], None] | None = None,
        on_text: Callable[[int, int, str], None] | None = None,
        on_completion: Callable[[int, int, Completion], None] | None = None,
        environment: Environment | None = None,
    ) -> list[list[Completion]]:
        """See Engine.sample. Many prompts are in flight; text comes when a completion has ended.

        Raises:
            InputError: for episodes, which need the keys of a turn after it has ended.
        """
        if environment is not None:
            raise InputError("episodes with tools are sampled on this machine only", param="tools")
        results: list[list[Completion]] = [[] for _ in requests]
        with self._reaching():
            sampler = self._sampler(adapter)
            for i, answer in in_flight(
                (functools.partial(self._ask, sampler, each) for each in requests), on_tick
            ):
                results[i] = [
                    exchange.completion_of(self.tokenizer, self.eos_ids, requests[i], each)
                    for each in answer.sequences
                ]
                for index, completion in enumerate(results[i]):
                    if on_text is not None:
                        on_text(i, index, completion.text)
                    if on_completion is not None:
                        on_completion(i, index, completion)
        return results

    @property
    def max_keys(self) -> int:
        """See Engine.max_keys: the server looks after its own memory."""
        return sys.maxsize

    def begin(self, adapter: Adapter) -> _Sampling:
        """See Engine.begin."""
        return _Sampling(self, adapter)

    def _sampler(self, adapter: Adapter | Literal["policy"]) -> Any:
        if adapter == "policy":
            return self._current().sampler()
        if adapter is None:
            return self._base_sampler
        return self._restored(_saved(adapter)).sampler()

    @functools.cached_property
    def _base_sampler(self) -> Any:
        made = self._service.create_sampling_client(base_model=self.remote.model)
        return clients.client_of(made)

    def _restored(self, saved: dict[str, Any]) -> Policy:
        """A saved policy for inference, in addition to the one that is trained.

        The protocol would let us sample from saved weights by their path, but SkyRL does not do
        that: its JAX backend replaces the policy in training by them, its other backends sample
        from the policy in training whatever the path is, and all of them forget the path when the
        policy goes.
        """
        if self._asked is None or self._asked[0] != saved["state"]:
            self._stop_asking()
            self._asked = (saved["state"], self._loaded(saved)[0])
        return self._asked[1]

    def _stop_asking(self) -> None:
        if self._asked is not None:
            self._asked[1].end()
        self._asked = None

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
        asked = sampler.sample(
            self._tinker.ModelInput.from_ints(request.prompt_ids),
            num_samples=len(request.seeds),
            sampling_params=params,
        )
        return clients.future_of(asked)

    # ── training ─────────────────────────────────────────────────────────────────────────────

    def train_step(
        self,
        groups: Sequence[TrainGroup],
        settings: TrainSettings,
        *,
        on_tick: Callable[[], None] | None = None,
    ) -> StepStats:
        """See Engine.train_step. The update is sent along with the gradient, so that one waits."""
        members = exchange.members_of(groups)
        num_tokens = sum(len(member.tokens) for member in members)
        data = [self._datum(member, num_tokens) for member in members]
        config = None
        if settings.loss == "clipped":
            config = {
                "clip_low_threshold": 1 - settings.clip_low,
                "clip_high_threshold": 1 + settings.clip_high,
            }
        adam = self._adam(settings)
        policy = self._current()
        with self._reaching():
            policy.changed()
            gradient = policy.training.forward_backward(
                data, LOSS_NAMES[settings.loss], config
            ).future()
            update = policy.training.optim_step(adam).future()
            wait_for([gradient, update], on_tick)
            outputs, after = gradient.result().loss_fn_outputs, update.result()
        policy_logprobs = [
            list(output["logprobs"].data)[len(member.prompt) - 1 :]
            for output, member in zip(outputs, members, strict=True)
        ]
        metrics = getattr(after, "metrics", None) or {}
        return exchange.stats_of(members, policy_logprobs, settings, metrics)

    def imitate(
        self,
        given: Sequence[Text],
        settings: TrainSettings | None,
        *,
        on_tick: Callable[[], None] | None = None,
    ) -> TextStats:
        """See Engine.imitate; the server does not report which tokens were the most likely ones."""
        num_tokens = sum(sum(text.trained) for text in given)
        data = [
            self._tinker.Datum(
                model_input=self._tinker.ModelInput.from_ints(text.tokens[:-1]),
                loss_fn_inputs=exchange.text_inputs_of(text, num_tokens),
            )
            for text in given
        ]
        policy, after = self._current(), None
        with self._reaching():
            if settings is None:
                measured = policy.training.forward(data, "cross_entropy").future()
                wait_for([measured], on_tick)
            else:
                policy.changed()
                measured = policy.training.forward_backward(data, "cross_entropy").future()
                update = policy.training.optim_step(self._adam(settings)).future()
                wait_for([measured, update], on_tick)
                after = update.result()
            outputs = [list(each["logprobs"].data) for each in measured.result().loss_fn_outputs]
        return exchange.text_stats_of(given, outputs, getattr(after, "metrics", None) or {})

    def prefer(
        self,
        pairs: Sequence[Pair],
        beta: float,
        settings: TrainSettings | None,
        *,
        on_tick: Callable[[], None] | None = None,
    ) -> PairStats:
        """The protocol has no loss for pairs, so such a job was refused (`api.job_body`)."""
        raise NotImplementedError

    def answer_logprobs(
        self,
        pairs: Sequence[Pair],
        adapter: Adapter,
        *,
        on_tick: Callable[[], None] | None = None,
    ) -> list[tuple[float, float]]:
        """Not available, for the same reason as `prefer`."""
        raise NotImplementedError

    def _adam(self, settings: TrainSettings) -> Any:
        return self._tinker.AdamParams(
            learning_rate=settings.learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            eps=EPS,
            grad_clip_norm=settings.max_grad_norm,
        )

    def _datum(self, member: exchange.Member, num_tokens: int) -> Any:
        read = self._tinker.ModelInput.from_ints([*member.prompt, *member.tokens[:-1]])
        inputs: Any = exchange.inputs_of(member, num_tokens)
        return self._tinker.Datum(model_input=read, loss_fn_inputs=inputs)

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Name the server in the error of a failed call.

        Raises:
            EngineLostError: the server does not answer, or has lost the policy.
            InputError: it takes another version of the client.
        """
        from tinker.lib.retryable_exception import RetryableException

        try:
            yield
        except RftkitError:
            raise
        except AssertionError as error:  # raised by the client for an answer that it cannot use
            self._check_versions(error)
            raise
        except (self._tinker.TinkerError, RetryableException, ValueError, OSError) as error:
            self._check_versions(error)
            # The client has retried for minutes. Errors that it must not retry are ValueErrors.
            lost = EngineLostError(
                f"the Tinker server {self.remote.url} failed: {str(error)[:500] or type(error)}"
            )
            lost.refused = getattr(error, "status_code", None) in REFUSALS
            raise lost from error

    def _check_versions(self, error: Exception) -> None:
        if (advice := clients.advice(error)) is not None:
            raise InputError(
                f"the Tinker server {self.remote.url} does not understand the installed client, "
                f"tinker {self._tinker.__version__}: {advice}",
                param="metadata.engine",
            ) from error


def _texts(source: str) -> tuple[Any, Any, Any]:
    """Tokenizer, config and generation config of a model, from this machine."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    try:
        tokenizer, config = (
            AutoTokenizer.from_pretrained(source, trust_remote_code=False),
            AutoConfig.from_pretrained(source, trust_remote_code=False),
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
