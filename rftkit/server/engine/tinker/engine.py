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
import itertools
import json
import sys
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
    FullNeeds,
    Listener,
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
from rftkit.server.engine.tinker import exchange
from rftkit.server.engine.tinker.remote import STATE, Remote, differences

__all__ = ["TinkerEngine"]

IN_FLIGHT = 256
"""Most prompts that wait for the server at once."""
POLL_SECONDS = 0.02
REFUSALS = (400, 401, 403, 422)  # status codes; others say that it is away, busy or has forgotten
UNLOAD_SECONDS = 10
LOSSES = {"clipped": "ppo", "importance_sampling": "importance_sampling"}
"""Our names of losses, and the protocol's."""
BETAS = (0.9, 0.99)
EPS = 1e-12
"""Adam's step does not depend on the scale of the gradient, unless eps is of its size. Servers
scale it as they like (SkyRL's JAX backend divides by the number of completions)."""


class _Sampling:
    """See base.Sampling. Requests that join wait until those before them have ended."""

    def __init__(self, engine: TinkerEngine, adapter: Adapter) -> None:
        self._engine, self._adapter = engine, adapter
        self._waiting: dict[int, tuple[SampleRequest, Listener]] = {}

    def join(self, number: int, request: SampleRequest, listener: Listener) -> None:
        """See base.Sampling."""
        self._waiting[number] = (request, listener)

    def drop(self, number: int) -> None:
        """See base.Sampling: what the server has begun it ends."""
        self._waiting.pop(number, None)

    def go_on(self, seconds: float, until: Callable[[], bool]) -> bool:
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
        self.width: int | None = getattr(config, "hidden_size", None)
        self.thinking = prompts.thinking_mark(self.tokenizer)
        # The client requires a key in its own format; servers without accounts accept any.
        self._connect = functools.partial(
            tinker.ServiceClient, base_url=remote.url, api_key=api_key or "tml-rftkit"
        )
        self._policy: _Policy | None = None
        self._asked: tuple[str, _Policy] | None = None
        self._lora = LoraConfig()
        with self._reaching():
            self._service = self._connect()
            known = self._service.get_server_capabilities().supported_models
        served = [model.model_name for model in known]
        if remote.model not in served:
            self.close()
            raise EngineLostError(
                f"the Tinker server {remote.url} does not serve {remote.model!r}; it serves "
                f"{', '.join(map(str, served))}"
            )

    @functools.cached_property
    def grammars(self) -> Any:
        """Compiled schemas: to refuse what is no schema. The server does not decode under them."""
        from rftkit.server.engine.torch.grammar import Grammars

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

    def close(self) -> None:
        """End every session with the server; what it saved stays there."""
        self.drop_policy()
        self._stop_asking()
        _end(self._service)

    # ── prompts ──────────────────────────────────────────────────────────────────────────────

    def encode(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        thinking: str | None = None,
    ) -> list[int]:
        """See Engine.encode."""
        return prompts.encode(self.tokenizer, messages, tools, thinking, self.context_tokens)

    def conversation(
        self,
        messages: list[dict[str, Any]],
        trained: Sequence[int],
        tools: list[dict[str, Any]] | None = None,
        thinking: str | None = None,
    ) -> list[Text]:
        """See Engine.conversation."""
        return prompts.conversation(
            self.tokenizer, messages, trained, tools, thinking, end_ids=self.eos_ids
        )

    def given(self, text: str, schema: str | None) -> list[int] | None:
        """A job that asks for guidance was refused (`remote.refuse`)."""
        raise NotImplementedError

    def tokens_until(self, tokens: list[int], text: str) -> int | None:
        """See Engine.tokens_until."""
        return prompts.tokens_until(self.tokenizer, tokens, text)

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
            path = _saved(adapter)["state"]
            self._policy = self._made("create_training_client_from_state", path)
        else:
            self._policy = self._made(
                "create_lora_training_client",
                base_model=self.remote.model,
                rank=config.rank,
                seed=seed,
                train_unembed=False,
            )
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
        """See Engine.save_adapter; with a PEFT folder beside the name where the server gives one.

        The state is kept too: it is what other jobs start from, and what chats ask.
        """
        sampler = self._kept("save_weights_for_sampler", folder)
        self._write(folder, state=self._kept("save_state", folder), sampler=sampler)
        self._download(sampler, folder)

    def load(self, folder: Path) -> None:
        """See Engine.load."""
        saved = _saved(folder)
        self.drop_policy()
        self._policy = self._made(
            "create_training_client_from_state_with_optimizer", saved["state"]
        )
        self._lora = LoraConfig(**saved["lora"])

    def _made(self, method: str, *args: Any, **kwargs: Any) -> _Policy:
        with self._reaching():
            service = self._connect()
            try:
                return _Policy(service, getattr(service, method)(*args, **kwargs))
            except BaseException:
                _end(service)
                raise

    def _current(self) -> _Policy:
        if self._policy is None:
            raise RuntimeError("no policy: call start_policy or load first")
        return self._policy

    def _write(self, folder: Path, **paths: str) -> None:
        lora = {"rank": self._lora.rank, "alpha": self._lora.alpha}
        saved = {"server": self.remote.url, "model": self.remote.model, "lora": lora, **paths}
        (folder / STATE).write_text(json.dumps(saved))

    def _kept(self, method: str, folder: Path) -> str:
        """Ask the server to keep the policy; under what path it does."""
        # A new name each time: servers refuse a known name, and a kill may repeat a save.
        name = f"{folder.name.strip('.')}-{time.time_ns():x}"[-60:]
        with self._reaching():
            return str(getattr(self._current().training, method)(name).result().path)

    def _download(self, sampler: str, folder: Path) -> None:
        """Unpack the server's archive, if it offers one and has a PEFT folder in it."""
        errors = (self._tinker.TinkerError, OSError, tarfile.TarError, ValueError)
        with contextlib.suppress(*errors):
            # The id is `sampler_weights/NAME`; SkyRL leaves the kind out, in paths and in ids.
            run, _, checkpoint = sampler.removeprefix("tinker://").partition("/")
            rest = self._service.create_rest_client()
            url = rest.get_checkpoint_archive_url(run, checkpoint).result().url
            with urllib.request.urlopen(url, timeout=600) as archive:
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
    ) -> list[list[Completion]]:
        """See Engine.sample: many prompts in flight, at most IN_FLIGHT; text comes when whole."""
        results: list[list[Completion]] = [[] for _ in requests]
        with self._reaching():
            sampler = self._sampler(adapter)
            for i, answer in _in_flight(
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
        """See Engine.max_keys: the server's own affair."""
        return sys.maxsize

    def begin(self, adapter: Adapter) -> _Sampling:
        """See Engine.begin."""
        return _Sampling(self, adapter)

    def _sampler(self, adapter: Adapter | Literal["policy"]) -> Any:
        if adapter == "policy":
            return self._current().sampler()
        if adapter is None:
            return self._base_sampler
        return self._restored(_saved(adapter)["state"]).sampler()

    @functools.cached_property
    def _base_sampler(self) -> Any:
        return self._service.create_sampling_client(base_model=self.remote.model)

    def _restored(self, state: str) -> _Policy:
        """A saved policy for inference, beside the one that is trained.

        Its sampling weights could be used by their path, but not on SkyRL: its JAX backend puts
        them in the place of the policy that is trained, its others ask that policy whatever the
        path says, and all forget the path with the policy.
        """
        if self._asked is None or self._asked[0] != state:
            self._stop_asking()
            self._asked = (state, self._made("create_training_client_from_state", state))
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
        future: Future[Any] = sampler.sample(
            self._tinker.ModelInput.from_ints(request.prompt_ids),
            num_samples=len(request.seeds),
            sampling_params=params,
        )
        return future

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
                data, LOSSES[settings.loss], config
            ).future()
            update = policy.training.optim_step(adam).future()
            _wait([gradient, update], on_tick)
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
        """See Engine.imitate; what the most likely tokens were is not known here."""
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
                _wait([measured], on_tick)
            else:
                policy.changed()
                measured = policy.training.forward_backward(data, "cross_entropy").future()
                update = policy.training.optim_step(self._adam(settings)).future()
                _wait([measured, update], on_tick)
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
        """The protocol has no loss of pairs; a job that asks for it was refused."""
        raise NotImplementedError

    def answer_logprobs(
        self,
        pairs: Sequence[Pair],
        adapter: Adapter,
        *,
        on_tick: Callable[[], None] | None = None,
    ) -> list[tuple[float, float]]:
        """As `prefer`."""
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
            lost = EngineLostError(
                f"the Tinker server {self.remote.url} failed: {str(error)[:500] or type(error)}"
            )
            lost.refused = getattr(error, "status_code", None) in REFUSALS
            raise lost from error


class _Policy:
    """A policy in the server's memory, in its own session: ending the session frees its slot."""

    def __init__(self, service: Any, training: Any) -> None:
        self.training = training
        self._service = service
        self._sampler: Any = None

    def sampler(self) -> Any:
        """Who answers as the policy is now."""
        if self._sampler is None:
            self._sampler = self.training.save_weights_and_get_sampling_client()
        return self._sampler

    def changed(self) -> None:
        """An update is on its way: what was taken for sampling is the policy no more."""
        self._sampler = None

    def end(self) -> None:
        """Free its memory on the server. A server that is away forgets it by itself."""
        from tinker import TinkerError
        from tinker.lib.client_connection_pool_type import ClientConnectionPoolType
        from tinker.types import UnloadModelRequest

        holder, request = self.training.holder, UnloadModelRequest(model_id=self.training.model_id)

        async def unload() -> None:
            with holder.aclient(ClientConnectionPoolType.TRAIN) as client:
                await client.models.unload(request=request, max_retries=0, timeout=UNLOAD_SECONDS)

        with contextlib.suppress(TinkerError, TimeoutError):
            holder.run_coroutine_threadsafe(unload()).result(UNLOAD_SECONDS)
        _end(self._service)


def _end(service: Any) -> None:
    """End a client's sessions: it sends signs of life for as long as nobody does this."""
    for holder in (service._session_holder, service._rest_holder):  # its property would make one
        if holder is not None:
            holder.close()


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


def _in_flight(
    asks: Iterator[Callable[[], Future[Any]]], on_tick: Callable[[], None] | None
) -> Iterator[tuple[int, Any]]:
    """(place, answer) as answers come, with at most IN_FLIGHT under way."""
    numbered = enumerate(asks)
    under_way: dict[Future[Any], int] = {}
    try:
        while True:
            for i, ask in itertools.islice(numbered, IN_FLIGHT - len(under_way)):
                under_way[ask()] = i
            if not under_way:
                return
            done, _ = wait(under_way, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                yield under_way.pop(future), future.result()
            if on_tick is not None:
                on_tick()
    finally:
        for future in under_way:
            future.cancel()


def _wait(futures: Sequence[Future[Any]], on_tick: Callable[[], None] | None) -> None:
    while wait(futures, timeout=POLL_SECONDS).not_done:
        if on_tick is not None:
            on_tick()
