"""The embedded engine: a transformers decoder, what of it learns, and AdamW, on one device.

LoRA adapters learn, or every weight (`full.py`). The prompt of a group is computed once, in
sampling and in training (`layout.py`); the model is in bfloat16 where the hardware multiplies it,
what learns and its optimizer in float32. Not here: several devices (that is what `tinker.py` is
for).
"""

from __future__ import annotations

import contextlib
import functools
import math
import platform
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from safetensors.torch import load_file, save_file

from rftkit.errors import InputError
from rftkit.server.engine import models, prompts
from rftkit.server.engine.base import (
    FULL_FILE,
    Adapter,
    Completion,
    FullNeeds,
    LoraConfig,
    NotFiniteError,
    SampleRequest,
    StepStats,
    Thinking,
    TrainGroup,
    TrainSettings,
    is_whole,
)
from rftkit.server.engine.torch import lora, memory, sampler
from rftkit.server.engine.torch.batches import lay_out, micro_batches
from rftkit.server.engine.torch.checkpointing import Layers
from rftkit.server.engine.torch.decode import Decode
from rftkit.server.engine.torch.fast import speed_up
from rftkit.server.engine.torch.full import Weights, embedded
from rftkit.server.engine.torch.grammar import Grammars, Masks
from rftkit.server.engine.torch.layout import ATTENTION_NAME, register_attention
from rftkit.server.engine.torch.logprobs import scores, token_logprobs
from rftkit.server.engine.torch.loss import LOSSES, LossInputs, kl_estimate
from rftkit.server.engine.torch.packed import Packed
from rftkit.server.engine.torch.plain import PlainDecode, plain_hidden
from rftkit.server.engine.torch.stack import find_stack

__all__ = ["TorchEngine"]

MAX_ROWS = 256
MEMORY_SHARE = 0.5  # of what is free, for keys or for what a backward pass keeps
MEMORY_BYTES = 9 * 2**28  # more makes nothing faster on a CPU
LEAST_TRAIN_TOKENS = 1_024  # of a micro-batch; fewer cost more time than computing layers again
CACHED_ADAPTERS = 8
MASTERS = "masters.safetensors"  # in a saved state: the weights in float32
OTHER = 0.25  # of what is compared: more than rounding makes, less than another formula
SMALL_PARAMETERS = 1_000_000  # below, bfloat16 and a second thread cost more than they save
_THREADS = torch.get_num_threads()


class TorchEngine:
    """One base model in memory, one policy being trained, any saved adapter on demand."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Load the Hugging Face folder of the base model `name`."""
        from transformers import AutoTokenizer

        register_attention()
        memory.keep()
        self.name = name
        self.device = torch.device(device or _best_device())
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        is_small = _num_bytes(folder) < 4 * SMALL_PARAMETERS
        fast = torch.float32 if is_small else best_dtype(self.device)
        model = _load_model(folder, dtype or fast)
        self.dtype: torch.dtype = model.dtype
        # A small model waits for threads longer than it computes.
        self._threads = 1 if is_small else _THREADS
        model.requires_grad_(False).eval().to(self.device)
        self._decoder = model.get_decoder()
        speed_up(self._decoder, self.dtype)
        self._blocks = lora.add_blocks(model, self._decoder)
        self._stack = find_stack(self._decoder)
        self._layers = Layers(self._decoder)
        self._plain_because: str | None = None
        if self._stack is None:
            self._plain_because = self._refusal(model)
        self._key_bytes = _key_bytes(model.config, self.dtype)
        self.memory_bytes: int | None = _free_bytes(self.device)
        self.head: torch.Tensor = model.get_output_embeddings().weight
        self._head_back = self.head  # gradients travel in the dtype of the base
        self.num_tokens = int(self.head.shape[0])
        if self.device.type == "cpu":
            self.head = self.head.float()  # for float32 logits: see `logprobs`
        self._check_logits(model)
        self.eos_ids = models.end_tokens(self.tokenizer, model.generation_config)
        self.context_tokens = self._longest(model)
        self.thinking = prompts.thinking_mark(self.tokenizer)
        self._weights = Weights(model, self._blocks)
        self._full_on: dict[str, torch.Tensor] | None = None
        self._policy: dict[str, torch.Tensor] | None = None
        self._config: LoraConfig | None = None  # of the policy; None: every weight learns
        self._optimizer: torch.optim.Optimizer | None = None
        self._cache: OrderedDict[Path, _Saved] = OrderedDict()
        self._use("policy")

    @functools.cached_property
    def grammars(self) -> Grammars:
        """Compiled schemas; made when first needed, since that takes a second."""
        return Grammars(self.tokenizer, self.head.shape[0], sorted(self.eos_ids))

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the numbers besides the seed."""
        import transformers

        return {
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": self._threads,
            "machine": platform.machine(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
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

    def hidden(self, tokens: torch.Tensor, layout: Any) -> torch.Tensor:
        """Last hidden states (N, width) of tokens (N,) under a layout, in the model's dtype."""
        return self._hidden(tokens, layout).to(self.dtype)

    def _hidden(self, tokens: torch.Tensor, layout: Any) -> torch.Tensor:
        if self._plain_because:
            return plain_hidden(self._decoder, tokens, layout)
        # The residual stream is float32: in bfloat16 its rounding alone moves log-probs by 0.03.
        states = embedded(self._decoder.get_input_embeddings(), tokens)
        if self._stack is not None:
            last = self._stack.hidden(states, layout, self.memory_bytes)
            normed: torch.Tensor = self._decoder.norm(last)
            return normed
        output = self._decoder(
            inputs_embeds=states[None],
            position_ids=layout.positions[None],
            use_cache=False,
            layout=layout,
        )
        result: torch.Tensor = output.last_hidden_state[0]
        return result

    def decode(
        self, prefill: Packed, texts: Sequence[list[int]], groups: list[int]
    ) -> Decode | PlainDecode:
        """The layout of rows that go on from prefilled texts; row r from that of `groups[r]`."""
        if self._plain_because:
            return PlainDecode([list(texts[group]) for group in groups])
        return Decode(prefill, [len(text) for text in texts], groups)

    def _refusal(self, model: Any) -> str | None:
        """Why this model's attention takes no layout of ours, which it then is not given; or None.

        Raises:
            InputError: when it cannot be computed without one either.
        """
        layout = Packed([4], [[3, 2]], self.device)
        tokens = torch.arange(9, device=self.device)
        asked = Packed([4], [[]], self.device, keep_keys=True)
        why = "with a shared prompt it gives other numbers than alone"
        ours = None
        with torch.no_grad():
            try:
                self.hidden(tokens[:4], asked)
                if asked.keys:
                    ours = self.hidden(tokens, layout)
                else:
                    why = "its attention does not take a layout (it never asks one)"
            except NotImplementedError as error:
                why = str(error)
            except Exception as error:  # of code that is not ours: whatever it does not expect
                why = f"its attention does not take a layout ({type(error).__name__}: {error})"
            model.set_attn_implementation("eager")
            try:
                alone = plain_hidden(self._decoder, tokens, layout)
                short = plain_hidden(self._decoder, tokens[:4], Packed([4], [[]], self.device))
            except Exception as error:
                raise self._not_for_us(model, f"cannot be computed here: {error}") from error
        if (short - alone[:4]).norm() > OTHER * short.norm():
            raise self._not_for_us(model, "gives a token another state when others follow it")
        if ours is None or (ours - alone).norm() > OTHER * alone.norm():
            return why
        model.set_attn_implementation(ATTENTION_NAME)
        return None

    def _check_logits(self, model: Any) -> None:
        """Refuse a model that does more behind its head than this engine does.

        Raises:
            InputError: when its logits are capped, scaled or shifted.
        """
        layout = Packed([3], [[]], self.device)
        plain = {} if self._plain_because else {"layout": layout}
        states: list[torch.Tensor] = []
        head = model.get_output_embeddings()
        if getattr(head, "bias", None) is not None and head.bias.any():
            raise self._not_for_us(model, "has a bias on its output head, which is not added here")
        hooks = [
            self._decoder.register_forward_hook(
                lambda _module, _inputs, output: states.append(output.last_hidden_state[0])
            ),
            head.register_forward_pre_hook(
                lambda module, inputs: (inputs[0].to(module.weight.dtype),)
            ),
        ]
        with torch.no_grad():
            inputs = embedded(self._decoder.get_input_embeddings(), layout.positions)[None]
            said = model(inputs_embeds=inputs, use_cache=False, **plain).logits[0].float()
            ours = scores(states[0], self.head, None, 1.0)
        for hook in hooks:
            hook.remove()
        if (ours - said).norm() > 0.05 * said.norm():
            raise self._not_for_us(
                model, "caps or scales its logits behind the output head, which is not done here"
            )

    def _longest(self, model: Any) -> int:
        """Tokens of the longest text the model reads."""
        for name in ("max_position_embeddings", "seq_length", "max_seq_len"):
            if found := getattr(model.config, name, None):
                return int(found)
        why = "has no max_position_embeddings in its config.json, which says how much it reads"
        raise self._not_for_us(model, why)

    def _not_for_us(self, model: Any, why: str) -> InputError:
        return InputError(
            f"{self.name} ({type(model).__name__}) {why}: choose another model, or train it on a "
            "Tinker server (rftkit serve --engine tinker)",
            param="model",
        )

    # ── the policy ───────────────────────────────────────────────────────────────────────────

    def start_policy(
        self, config: LoraConfig | None, seed: int, adapter: Path | None = None
    ) -> None:
        """See Engine.start_policy. A saved adapter keeps its own shape, or is merged."""
        saved = None if adapter is None else self._saved(adapter)
        if config is None:
            self._set_policy(self._masters(saved), None)
        elif saved is not None:
            assert saved[1] is not None, "adapters do not learn on whole weights"  # refused before
            self._set_policy(*saved)
        else:
            generator = torch.Generator().manual_seed(seed)
            self._set_policy(lora.fresh_adapter(self._blocks, config, generator), config)

    def _masters(self, saved: _Saved | None) -> dict[str, torch.Tensor]:
        """All weights in float32: the base's, saved ones, or the base's with a saved adapter."""
        weights, config = saved or ({}, LoraConfig())
        if config is None:
            return _copied(weights, self.device)
        self._use(None)
        masters = self._weights.read(torch.float32)
        for name in {key.rpartition(".")[0] for key in weights}:
            change = weights[f"{name}.B"] @ weights[f"{name}.A"]
            masters[f"{name}.weight"] += config.alpha / config.rank * change
        return masters

    def notes(
        self, schema: str | None, thinking: Thinking | None, *, full: bool = False
    ) -> list[str]:
        """See Engine.notes."""
        said = []
        if self._plain_because:
            said.append(
                f"{self.name} takes the plain path: {self._plain_because}. Every completion is "
                "computed with its whole prompt, for every token again: right, but slow"
            )
        elif self._stack is None:
            said.append(
                f"The layers of {self.name} are not of Llama's form: they run as transformers "
                "wrote them, prompts shared all the same"
            )
        if full:
            form = "as for adapters" if said else "forward and backward written out"
            said.append(
                f"Every weight of {self.name} learns, embeddings, norms and output head too: "
                f"{self._weights.num_parameters:,} parameters, float32 with their optimizer, "
                f"computed in {self.facts['dtype']}; the layers run {form}"
            )
        return said

    def full_needs(self) -> FullNeeds:
        """See Engine.full_needs.

        Masters, their gradients and two moments are float32; the base's weights are put aside, and
        a backward pass hands over gradients in the dtype of the model.
        """
        memory.give_back()
        num, own = self._weights.num_parameters, self._weights.num_bytes
        return FullNeeds(num, 16 * num + 2 * own, _available(self.device), 12 * num, own)

    def drop_policy(self) -> None:
        """Forget the policy; what remains is the base model."""
        self._weights.stop_learning()
        self._policy, self._optimizer = None, None
        self._use("policy")
        self._weights.forget_base()
        memory.give_back()

    def close(self) -> None:
        """See Engine.close: the memory goes with the last reference."""
        self.drop_policy()

    def save_adapter(self, folder: Path) -> None:
        """See Engine.save_adapter: PEFT's folder format, or all weights as they are sampled."""
        policy, _ = self._trained()
        if self._config is None:
            with self._using("policy"):
                save_file(self._weights.read(), folder / FULL_FILE)
        else:
            lora.save_adapter(folder, policy, self._config, self.name)

    def save(self, folder: Path) -> None:
        """See Engine.save: what learns in float32, the optimizer beside it."""
        policy, optimizer = self._trained()
        if self._config is None:
            save_file({name: each.detach() for name, each in policy.items()}, folder / MASTERS)
        else:
            self.save_adapter(folder)
        state = {}
        for name, tensor in policy.items():
            for key, value in optimizer.state.get(tensor, {}).items():
                state[f"{name}:{key}"] = value.detach().cpu().contiguous()
        save_file(state, folder / "optimizer.safetensors")

    def load(self, folder: Path) -> None:
        """See Engine.load."""
        if (folder / MASTERS).is_file():
            self._set_policy(_copied(load_file(folder / MASTERS), self.device), None)
        else:
            self._set_policy(*lora.load_adapter(folder, self.device))
        policy, optimizer = self._trained()
        for key, value in load_file(folder / "optimizer.safetensors").items():
            name, field = key.split(":")
            optimizer.state[policy[name]][field] = value.clone().to(self.device)

    def _set_policy(self, weights: dict[str, torch.Tensor], config: LoraConfig | None) -> None:
        memory.keep()
        self._config = config
        # One order for ever: the gradient's norm is a sum, and files have an order of their own.
        self._policy = {name: weights[name].requires_grad_() for name in sorted(weights)}
        self._optimizer = torch.optim.AdamW(
            list(self._policy.values()), lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self._weights.stop_learning()
        if config is None:
            self._weights.learn(self._policy)
        self._use("policy")

    def _trained(self) -> tuple[dict[str, torch.Tensor], torch.optim.Optimizer]:
        if self._policy is None or self._optimizer is None:
            raise RuntimeError("no policy: call start_policy or load first")
        return self._policy, self._optimizer

    def _use(self, adapter: Adapter | Literal["policy"]) -> None:
        self._active = adapter
        weights: dict[str, torch.Tensor] | None = None
        config: LoraConfig | None = None
        if adapter == "policy":
            weights, config = self._policy, self._config
        elif adapter is not None:
            weights, config = self._cached(Path(adapter))
        self._put(weights if config is None else None)
        for block in self._blocks:
            if config is None:
                block.use(None, 0.0)
            else:
                block.use(weights, config.alpha / config.rank)

    def _put(self, weights: dict[str, torch.Tensor] | None, *, changed: bool = False) -> None:
        """Have the model compute with whole weights, or with the base's, unless it does."""
        if weights is self._full_on and not changed:
            return
        with torch.no_grad():
            self._weights.put(weights)
            if self.head is not self._head_back:
                self.head.copy_(self._head_back)
        self._full_on = weights

    def _saved(self, folder: Path) -> _Saved:
        if is_whole(folder):
            return load_file(folder / FULL_FILE), None  # a file that is mapped takes no memory
        return lora.load_adapter(folder, self.device)

    def _cached(self, folder: Path) -> _Saved:
        if folder not in self._cache:
            self._cache[folder] = self._saved(folder)
            while len(self._cache) > CACHED_ADAPTERS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(folder)
        return self._cache[folder]

    @contextlib.contextmanager
    def _using(self, adapter: Adapter | Literal["policy"]) -> Iterator[None]:
        before = self._active
        self._use(adapter)
        try:
            yield
        finally:
            self._use(before)

    # ── sampling ─────────────────────────────────────────────────────────────────────────────

    def sample(
        self,
        requests: Sequence[SampleRequest],
        adapter: Adapter | Literal["policy"] = "policy",
        *,
        breathe: Callable[[], None] | None = None,
        on_text: Callable[[int, int, str], None] | None = None,
        on_completion: Callable[[int, int, Completion], None] | None = None,
    ) -> list[list[Completion]]:
        """See Engine.sample. `breathe` may itself sample, with another adapter."""
        torch.set_num_threads(self._threads)
        with self._using(adapter):
            return sampler.sample(
                self,
                requests,
                max_rows=MAX_ROWS,
                max_keys=(self.memory_bytes or MEMORY_BYTES) // self._key_bytes,
                breathe=breathe,
                on_text=on_text,
                on_completion=on_completion,
            )

    def embed(self, inputs: Sequence[list[int]], adapter: Adapter = None) -> list[list[float]]:
        """One vector of length 1 for each text: the mean of its last hidden states.

        No model here was trained to make embeddings; texts that use the same words come out near
        each other, and little more may be read into the numbers.
        """
        torch.set_num_threads(self._threads)
        vectors = []
        with torch.no_grad(), self._using(adapter):
            for tokens in inputs:
                packed = Packed([len(tokens)], [[]], self.device)
                line = torch.tensor(tokens, device=self.device)
                mean = self.hidden(line, packed).float().mean(dim=0)
                vectors.append(torch.nn.functional.normalize(mean, dim=0).tolist())
        return vectors

    # ── training ─────────────────────────────────────────────────────────────────────────────

    def train_step(
        self,
        groups: Sequence[TrainGroup],
        settings: TrainSettings,
        *,
        breathe: Callable[[], None] | None = None,
    ) -> StepStats:
        """See Engine.train_step."""
        torch.set_num_threads(self._threads)
        policy, optimizer = self._trained()
        optimizer.zero_grad(set_to_none=True)
        num_tokens = sum(len(tokens) for group in groups for tokens in group.tokens_G_T)
        sums = _Sums()
        for batch in micro_batches(groups, *self._batch_tokens(groups)):
            loss = self._loss(batch, settings, num_tokens, sums)
            loss.backward()
            sums.loss += float(loss.detach())
            if breathe is not None:
                breathe()
        norm = torch.nn.utils.clip_grad_norm_(list(policy.values()), settings.max_grad_norm)
        if not torch.isfinite(norm) or not math.isfinite(sums.loss):
            found = f"loss {sums.loss}, gradient norm {float(norm)}"
            raise NotFiniteError(found, self._not_finite(groups, settings))
        for parameters in optimizer.param_groups:
            parameters["lr"] = settings.learning_rate
        optimizer.step()
        if self._config is None:
            self._put(policy, changed=True)
        for block in self._blocks:
            block.refresh()
        return sums.stats(float(norm), num_tokens)

    def _batch_tokens(self, groups: Sequence[TrainGroup]) -> tuple[int, int]:
        """Tokens of a micro-batch that keeps what its way back needs; and of one that does not."""
        if self._plain_because:
            return LEAST_TRAIN_TOKENS, 0  # prompts are repeated anyway
        longest = max(len(g.prompt_ids) + max(map(len, g.tokens_G_T)) for g in groups)
        kept, again = self._kept_bytes(longest)
        budget = self.memory_bytes or MEMORY_BYTES
        fitting = LEAST_TRAIN_TOKENS if self._stack is None else budget // kept
        return max(LEAST_TRAIN_TOKENS, fitting), budget // again

    def _kept_bytes(self, seen: int) -> tuple[int, int]:
        """About what a way back needs of one token that sees so many, in layers of Llama's form.

        And what it needs where layers are computed again: the input of each in float32, and a few
        times what one keeps.
        """
        config = self._decoder.config
        layers, width = config.num_hidden_layers, config.hidden_size
        numbers = sum(sum(block.weight.shape) for block in self._blocks)
        numbers += layers * config.num_attention_heads * seen
        kept = numbers * self.dtype.itemsize
        return kept, 4 * layers * width + 4 * kept // layers

    def _not_finite(self, groups: Sequence[TrainGroup], settings: TrainSettings) -> list[int]:
        """Which groups have a loss or gradient of their own that is not finite."""
        policy, optimizer = self._trained()
        found = []
        for index, group in enumerate(groups):
            optimizer.zero_grad(set_to_none=True)
            loss = self._loss([group], settings, 1, _Sums())
            loss.backward()
            norm = torch.nn.utils.get_total_norm(
                [tensor.grad for tensor in policy.values() if tensor.grad is not None]
            )
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                found.append(index)
        optimizer.zero_grad(set_to_none=True)
        return found

    def logprobs(self, groups: Sequence[TrainGroup], temperature: float = 1.0) -> torch.Tensor:
        """Log-probs of all completion tokens under the policy, laid end to end."""
        return self._logprobs(groups, temperature)

    def _loss(
        self,
        groups: Sequence[TrainGroup],
        settings: TrainSettings,
        num_tokens: int,
        sums: _Sums,
    ) -> torch.Tensor:
        reference = None
        if settings.kl_coef > 0 or not sums.kl_tokens:
            # First: weights that the policy's pass has seen must not move before its way back.
            some = groups if settings.kl_coef > 0 else groups[:1]
            with torch.no_grad(), self._using(None):
                reference = self._logprobs(some, settings.temperature)
        policy_logprobs = self._logprobs(groups, settings.temperature)
        sampling_logprobs = torch.tensor(
            [x for g in groups for row in g.sampling_logprobs_G_T for x in row],
            device=self.device,
        )
        advantages = torch.tensor(
            [
                advantage
                for g in groups
                for advantage, tokens in zip(g.advantages_G, g.tokens_G_T, strict=True)
                for _ in tokens
            ],
            device=self.device,
        )
        inputs = LossInputs(
            policy_logprobs, sampling_logprobs, advantages, settings.clip_low, settings.clip_high
        )
        outputs = LOSSES[settings.loss](inputs)
        total = outputs.per_token.sum()
        if reference is not None:
            kl = kl_estimate(policy_logprobs[: len(reference)], reference).sum()
            if settings.kl_coef > 0:  # else it is only looked at: 0 × infinity would be no number
                total = total + settings.kl_coef * kl
            sums.kl += float(kl.detach())
            sums.kl_tokens += len(reference)
        sums.add(outputs.clipped, policy_logprobs.detach(), sampling_logprobs)
        return total / num_tokens

    def _logprobs(self, groups: Sequence[TrainGroup], temperature: float) -> torch.Tensor:
        """Log-prob of each completion token, (N,); 0 where there was no choice."""
        line = lay_out(groups, self._masks)
        packed = Packed(line.prompt_lengths, line.completion_lengths, self.device)
        self._layers.allow(self.memory_bytes)
        states = self.hidden(torch.tensor(line.tokens, device=self.device), packed)  # (N, width)
        at, wanted, places = (
            torch.tensor(each, device=self.device, dtype=torch.long)
            for each in (line.at, line.wanted, line.places)
        )
        some = token_logprobs(
            states[at], self.head, wanted, line.masks, temperature, self._head_back
        )
        return torch.zeros(line.num_tokens, device=self.device).index_copy(0, places, some)

    def _masks(self, group: TrainGroup) -> Masks | None:
        """Grammar masks of a group's completion tokens, or None when nothing is constrained."""
        if group.schema is None and group.thinking is None:
            return None
        return self.grammars.replay(group.schema, group.tokens_G_T, group.thinking)


_Saved = tuple[dict[str, torch.Tensor], LoraConfig | None]
"""Weights of a saved policy: adapters and their shape, or whole ones and None."""


class _Sums:
    """Running sums over the completion tokens of one update."""

    def __init__(self) -> None:
        self.loss = self.kl = self.clipped = self.entropy = self.gap = self.largest = 0.0
        self.kl_tokens = 0

    def add(self, clipped: torch.Tensor, policy: torch.Tensor, sampling: torch.Tensor) -> None:
        gap = (policy - sampling).abs()
        self.clipped += float(clipped.sum())
        self.entropy -= float(policy.sum())
        self.gap += float(gap.sum())
        self.largest = max(self.largest, float(gap.max()))

    def stats(self, grad_norm: float, num_tokens: int) -> StepStats:
        kl = self.kl / max(self.kl_tokens, 1)
        return StepStats(
            loss=self.loss,
            grad_norm=grad_norm,
            clip_fraction=self.clipped / num_tokens,
            entropy=self.entropy / num_tokens,
            kl=kl if math.isfinite(kl) else None,
            logprob_gap_mean=self.gap / num_tokens,
            logprob_gap_max=self.largest,
            num_tokens=num_tokens,
        )


def _copied(weights: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """In float32, on addresses of their own: see `lora.load_adapter`."""
    return {name: each.to(device, torch.float32, copy=True) for name, each in weights.items()}


def _load_model(folder: Path, dtype: torch.dtype) -> Any:
    """A transformers model; with the attention of `layout.py`, if it is one that can be given one.

    Models of before transformers' attention interface (Falcon, GPT-J) look in a table of their own.
    """
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=ATTENTION_NAME, trust_remote_code=False
        )
    except KeyError as error:
        if error.args != (ATTENTION_NAME,):
            raise
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", trust_remote_code=False
        )


def _num_bytes(folder: Path) -> int:
    """Of a model's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _key_bytes(config: Any, dtype: torch.dtype) -> int:
    """Of one token's keys and values in all layers."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * dtype.itemsize)


def _free_bytes(device: torch.device) -> int:
    """The memory that one wave or one backward pass may take, by what is free now."""
    share = int(MEMORY_SHARE * _available(device))
    return share if device.type == "cuda" else min(MEMORY_BYTES, share)


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu":
        capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if capable else torch.float32
    return torch.float32
