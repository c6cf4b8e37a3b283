"""The embedded engine: a transformers decoder, what of it learns, and AdamW, on one device.

LoRA adapters learn, or every weight (`full.py`). The prompt of a group is computed once, in
sampling and in training (`layout.py`); the model is in bfloat16 where the hardware multiplies it,
what learns and its optimizer in float32. Not here: several devices (that is what the Tinker engine
is for).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch

from rftkit.server.engine.base import Environment, Listener
from rftkit.server.engine.torch import job_check, memory, sampler, texts, update
from rftkit.server.engine.torch.hardware import MEMORY_BYTES, available_bytes
from rftkit.server.engine.torch.model import LoadedModel
from rftkit.server.engine.torch.packed import Packed
from rftkit.server.engine.torch.policies import Policies
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

__all__ = ["TorchEngine"]

MAX_ROWS = 256


class Sampling:
    """See base.Sampling."""

    def __init__(self, engine: TorchEngine, adapter: Adapter) -> None:
        self._engine, self._adapter = engine, adapter
        self._decoding = sampler.Decoding(engine, MAX_ROWS)

    def join(self, number: int, request: SampleRequest, listener: Listener) -> None:
        """See base.Sampling."""
        self._decoding.join(number, request, listener, self._engine.max_keys)

    def drop(self, number: int) -> None:
        """See base.Sampling."""
        self._decoding.drop(number)

    def advance(self, seconds: float, until: Callable[[], bool]) -> bool:
        """See base.Sampling."""
        deadline = time.monotonic() + seconds
        with torch.no_grad(), self._engine.computing(self._adapter):
            while self._decoding.step():
                if time.monotonic() >= deadline or until():
                    return True
        return False


class TorchEngine(LoadedModel):
    """One base model in memory, one policy that is being trained, and any saved adapter
    on demand.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Load the Hugging Face folder of the base model `name`."""
        super().__init__(folder, name=name, device=device, dtype=dtype)
        self.policies = Policies(self)

    def start_policy(
        self, config: LoraConfig | None, seed: int, adapter: Path | None = None
    ) -> None:
        """See Engine.start_policy. A saved adapter keeps its own shape, or is merged."""
        self.policies.start(config, seed, adapter)

    def drop_policy(self) -> None:
        """Forget the policy; what remains is the base model."""
        self.policies.drop()

    def close(self) -> None:
        """See Engine.close: the memory goes with the last reference."""
        self.drop_policy()

    def save_adapter(self, folder: Path) -> None:
        """See Engine.save_adapter: PEFT's folder format, or all weights as they are sampled."""
        self.policies.save_adapter(folder)

    def save(self, folder: Path) -> None:
        """See Engine.save: the trained weights in float32, and the optimizer."""
        self.policies.save(folder)

    def load(self, folder: Path) -> None:
        """See Engine.load."""
        self.policies.load(folder)

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
        """See Engine.sample. `on_tick` may itself sample, with another adapter."""
        with self.computing(adapter):
            return sampler.sample(
                self,
                requests,
                max_rows=MAX_ROWS,
                max_keys=self.max_keys,
                on_tick=on_tick,
                on_text=on_text,
                on_completion=on_completion,
                environment=environment,
            )

    @contextlib.contextmanager
    def computing(self, adapter: Adapter | Literal["policy"]) -> Iterator[None]:
        """Compute with these weights inside the block.

        The number of threads is put back too: it decides the numbers of a job that trains on
        another model meanwhile.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with self.policies.using(adapter):
                yield
        finally:
            torch.set_num_threads(threads)

    def begin(self, adapter: Adapter) -> Sampling:
        """See Engine.begin."""
        return Sampling(self, adapter)

    @property
    def max_keys(self) -> int:
        """Token positions whose keys fit in the memory for sampling."""
        return (self.memory_bytes or MEMORY_BYTES) // self._key_bytes

    def embed(self, inputs: Sequence[list[int]], adapter: Adapter = None) -> list[list[float]]:
        """One vector of length 1 for each text: the mean of its last hidden states.

        No model here was trained for embeddings: texts with the same words get similar vectors, and
        the numbers mean little more.
        """
        vectors = []
        with torch.no_grad(), self.computing(adapter):
            for tokens in inputs:
                packed = Packed([len(tokens)], [[]], self.device)
                line = torch.tensor(tokens, device=self.device)
                mean = self.hidden(line, packed).float().mean(dim=0)
                vectors.append(torch.nn.functional.normalize(mean, dim=0).tolist())
        return vectors

    def train_step(
        self,
        groups: Sequence[TrainGroup],
        settings: TrainSettings,
        *,
        on_tick: Callable[[], None] | None = None,
    ) -> StepStats:
        """See Engine.train_step."""
        torch.set_num_threads(self._threads)
        return update.train_step(self, self.policies, groups, settings, on_tick=on_tick)

    def imitate(
        self,
        given: Sequence[Text],
        settings: TrainSettings | None,
        *,
        on_tick: Callable[[], None] | None = None,
    ) -> TextStats:
        """See Engine.imitate."""
        torch.set_num_threads(self._threads)
        return texts.imitate(self, self.policies, given, settings, on_tick)

    def prefer(
        self,
        pairs: Sequence[Pair],
        beta: float,
        settings: TrainSettings | None,
        *,
        on_tick: Callable[[], None] | None = None,
    ) -> PairStats:
        """See Engine.prefer."""
        torch.set_num_threads(self._threads)
        return texts.prefer(self, self.policies, pairs, beta, settings, on_tick)

    def answer_logprobs(
        self,
        pairs: Sequence[Pair],
        adapter: Adapter,
        *,
        on_tick: Callable[[], None] | None = None,
    ) -> list[tuple[float, float]]:
        """See Engine.answer_logprobs."""
        torch.set_num_threads(self._threads)
        return texts.answer_logprobs(self, self.policies, pairs, adapter, on_tick)

    def notes(
        self, schema: str | None, thinking: Thinking | None, *, full: bool = False
    ) -> list[str]:
        """See Engine.notes."""
        notes = []
        if self._plain_because:
            notes.append(
                f"{self.name} takes the plain path: {self._plain_because}. Every completion is "
                "computed with its whole prompt, again for every token: correct, but slow"
            )
        elif self._stack is None:
            notes.append(
                f"The layers of {self.name} are not of Llama's form: they run as transformers "
                "wrote them, prompts shared all the same"
            )
        left = {name.rpartition(".")[2] for b in self.blocks if not b.adapts for name in b.names}
        if left and not full:
            notes.append(
                f"Layers of {self.name} named {', '.join(sorted(left))} get no adapters: the PEFT "
                "library would not load them there. The other linear layers learn"
            )
        if full:
            form = "as for adapters" if notes else "forward and backward written out"
            notes.append(
                f"Every weight of {self.name} learns, embeddings, norms and output head too: "
                f"{self.weights.num_parameters:,} parameters, float32 with their optimizer, "
                f"computed in {self.facts['dtype']}; the layers run {form}"
            )
        return notes

    def compare(self, prompts: Sequence[list[int]]) -> str | None:
        """See Engine.compare."""
        torch.set_num_threads(self._threads)
        asked = job_check.some_of(prompts, self.context_tokens)
        if not asked:
            return None
        with self.policies.using(None), torch.no_grad():
            groups = job_check.groups_of(asked, self.sample(asked, None))
            found = self.logprobs(groups)
            sampled = job_check.mean_difference(groups, found, None)
            own = sampled
            if self._plain_because is None:
                own = job_check.mean_difference(groups, found, self.own_logprobs(groups))
        lengths = sorted(len(request.prompt_ids) for request in asked)
        span = dict.fromkeys((f"{lengths[0]:,}", f"{lengths[-1]:,}"))
        where = f"prompts of {' to '.join(span)} tokens of this job"
        if job_check.within(max(sampled, own), self.dtype):
            path = "plain" if self._plain_because else "fast"
            return (
                f"{self.name} takes the {path} path. On {where}, log-probs sampled, recomputed and "
                f"by the model's own code differ by {max(sampled, own):.1g} on average"
            )
        if self._plain_because:
            raise self.not_for_us(
                f"gives other log-probs when it samples than when they are computed again: on "
                f"{where} they differ by {sampled:.2g} on average"
            )
        self.take_plain_path(
            f"on {where} its log-probs differ by {max(sampled, own):.2g} on average from those of "
            "the model's own code"
        )
        return self.compare(prompts)

    def full_needs(self) -> FullNeeds:
        """See Engine.full_needs.

        The masters, their gradients and two moments are float32. The base's weights are kept too,
        and a backward pass has gradients in the dtype of the model.
        """
        memory.give_back()
        num, own = self.weights.num_parameters, self.weights.num_bytes
        return FullNeeds(num, 16 * num + 2 * own, available_bytes(self.device), 12 * num, own)
