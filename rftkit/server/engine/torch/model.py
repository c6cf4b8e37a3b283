"""A base model in memory: its layers, tokenizer and output head, and what they compute.

`LoadedModel` turns tokens into hidden states and log-probs under whatever weights are in place, on
one device; when it loads, it checks that it computes what the model's own code does, and takes the
plain path or refuses where it cannot. Not here: which adapter is in place (`policies.py`), drawing
completions (`sampler.py`) and updates (`update.py`).
"""

from __future__ import annotations

import contextlib
import functools
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from rftkit.errors import InputError
from rftkit.jsontext import parse_json
from rftkit.server.engine import models, prompts
from rftkit.server.engine.grammar import Grammars, Masks
from rftkit.server.engine.prompting import Prompting
from rftkit.server.engine.torch import lora, memory, passes
from rftkit.server.engine.torch.agreement import (
    Logits,
    Reference,
    agreement,
    depends_on_neighbours,
    leak,
    logits_of,
    looks_ahead,
    own_states,
    states_of_line,
)
from rftkit.server.engine.torch.batches import Line, lay_out
from rftkit.server.engine.torch.checkpointing import Layers
from rftkit.server.engine.torch.configs import key_bytes, not_covered, stable_lengths
from rftkit.server.engine.torch.decode import Decode
from rftkit.server.engine.torch.fast import speed_up
from rftkit.server.engine.torch.full import Weights, embedded
from rftkit.server.engine.torch.hardware import (
    MEMORY_BYTES,
    best_device,
    best_dtype,
    free_bytes,
)
from rftkit.server.engine.torch.layout import ATTENTION_NAME, register_attention
from rftkit.server.engine.torch.logprobs import most_likely, token_logprobs
from rftkit.server.engine.torch.packed import Packed
from rftkit.server.engine.torch.plain import PlainDecode, longest_text, plain_hidden
from rftkit.server.engine.torch.stack import Stack, find_stack
from rftkit.server.engine.values import TrainGroup
from rftkit.wholefile import temporary_problem
from rftkit.wording import cut

__all__ = ["LoadedModel"]

LEAST_TRAIN_TOKENS = 1_024  # in a micro-batch; smaller ones cost more time than recomputing layers
SMALL_PARAMETERS = 1_000_000  # below, bfloat16 and a second thread cost more than they save
MAX_WHY = 500
"""Letters of a library's reason; transformers lists every model that it knows."""
SURELY_FIRST = math.log(0.51)  # no other token can be as likely; with room for rounding
_THREADS = torch.get_num_threads()


class LoadedModel(Prompting):
    """One base model in memory, ready to compute under its own or other weights."""

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
        self.device = torch.device(device or best_device())
        self.tokenizer = _loaded(
            folder, lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        )
        is_small = _num_bytes(folder) < 4 * SMALL_PARAMETERS
        fast = torch.float32 if is_small else best_dtype(self.device)
        model = _load_model(folder, dtype or fast)
        self.dtype: torch.dtype = model.dtype
        # A small model waits for threads longer than it computes.
        self._threads = 1 if is_small else _THREADS
        model.requires_grad_(False).eval().to(self.device)
        self._model, self._decoder = model, _decoder_of(model)
        config = model.config.get_text_config()  # the text part of a model that also takes images
        self._stable_tokens = min(stable_lengths(config), default=None)
        with _one_thread():
            own = self._own_states(model)
            found = self._behind_head(model)
        self.cap = found.cap
        self._scale = found.scale
        speed_up(self._decoder, self.dtype)
        self.blocks = lora.add_blocks(model, self._decoder)
        self.other_linears = [
            name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
        ]
        """Outside the decoder, whose linear layers are blocks now."""
        self._layers = Layers(self._decoder)
        self.memory_bytes = free_bytes(self.device)
        self._stack: Stack | None = None
        self._by_ids = False
        with _one_thread():
            self._plain_because = self._choose_path(model, own)
        self._key_bytes = key_bytes(config, self.dtype)
        self.head: torch.Tensor = model.get_output_embeddings().weight
        self.head_for_gradients = self.head  # gradients travel in the dtype of the base
        self.num_tokens = int(self.head.shape[0])
        if self.device.type == "cpu":
            self.head = self.head.float()  # for float32 logits: see `logprobs`
        self.eos_ids = models.end_tokens(self.tokenizer, model.generation_config)
        self.context_tokens = self._longest(config)
        self.width: int | None = getattr(self._decoder.config, "hidden_size", None)
        self.thinking = prompts.thinking_mark(self.tokenizer)
        self.weights = Weights(model, self.blocks)

    @functools.cached_property
    def grammars(self) -> Grammars:
        """Compiled schemas; made when first needed, since that takes a second."""
        return Grammars(self.tokenizer, self.head.shape[0], sorted(self.eos_ids))

    @property
    def memory_bytes(self) -> int | None:
        """Memory that one wave, or one backward pass, may take; None: anything."""
        return self._memory_bytes

    @memory_bytes.setter
    def memory_bytes(self, value: int | None) -> None:
        self._memory_bytes = value
        wanted = sum(block.weight.nbytes for block in self.blocks)
        for block in self.blocks:
            block.packs = value is None or wanted <= value

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that decide the numbers, in addition to the seed."""
        import transformers

        return {
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": self._threads,
            "loops": passes.compiler(self.head_for_gradients),
            "machine": platform.machine(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def encode_answer(self, text: str, schema: str | None) -> list[int] | None:
        """See Engine.given."""
        end = self.tokenizer.eos_token_id
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        tokens = [*map(int, ids), end if end in self.eos_ids else min(self.eos_ids)]
        if schema is not None:
            try:
                self.grammars.replay(schema, [tokens])
            except ValueError:
                return None
        return tokens

    @property
    def is_plain(self) -> bool:
        """Whether a pass of the model computes whole texts."""
        return self._plain_because is not None

    def hidden(self, tokens: torch.Tensor, layout: Any) -> torch.Tensor:
        """Last hidden states (N, width) of tokens (N,) under a layout, in the model's dtype.

        Raises:
            InputError: a text is longer than its positions stay the same.
        """
        if self._stable_tokens is not None and (num := longest_text(layout)) > self._stable_tokens:
            raise InputError(
                f"a text has {num:,} tokens, and beyond {self._stable_tokens:,} the positions of "
                f"{self.name} change with every further token (dynamic RoPE scaling), so that what "
                "was sampled could not be computed again; shorten the prompt or the answer",
                code="context_length_exceeded",
            )
        states = self._hidden(tokens, layout)
        return (states if self._scale == 1.0 else states * self._scale).to(self.dtype)

    def _hidden(self, tokens: torch.Tensor, layout: Any) -> torch.Tensor:
        if self._plain_because:
            return plain_hidden(self._decoder, tokens, layout, by_ids=self._by_ids)
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
        """The layout of rows that continue prefilled texts; row r continues that of `groups[r]`."""
        if self._plain_because:
            return PlainDecode([list(texts[group]) for group in groups])
        return Decode(prefill, [len(text) for text in texts], groups)

    def _own_states(self, model: Any) -> Reference:
        """The output of the model's own code for a few texts, before any of it is replaced.

        Raises:
            InputError: when it cannot be computed, or depends on later tokens.
        """
        try:
            num = model.get_input_embeddings().weight.shape[0]
            own = own_states(self._decoder, num, self.device)
            beside = depends_on_neighbours(own, self._decoder, self.device)
        except Exception as error:  # a model's own code can raise anything
            raise self.not_for_us(f"cannot be computed here: {error}") from error
        if looks_ahead(own):
            raise self.not_for_us("gives a token another state when others follow it")
        if beside:
            raise self.not_for_us("computes a text differently when other texts are next to it")
        return own

    def _choose_path(self, model: Any, own: Reference) -> str | None:
        """Take the fastest path that gives what the model's own code gives.

        Returns:
            Why it is the plain path; None when it is not.

        Raises:
            InputError: when no path does.
        """
        if (why := self._without_layout(model, own)) is None:
            return None
        self.take_plain_path(why)
        wrong = None
        for self._by_ids in (False, True):
            if (wrong := self._wrong_on_plain_path(own)) is None:
                return why
        raise self.not_for_us(str(wrong))

    def _wrong_on_plain_path(self, own: Reference) -> str | None:
        """How the plain path differs from the model's own code, in words; None if it does not."""
        try:
            found = states_of_line(own, self._hidden, self.device)
            apart = agreement(own, self._hidden, self.device, found, decodes=False)
        except Exception as error:  # a model's own code can raise anything
            return f"cannot be computed here: {error}"
        if apart <= 1:
            return None
        return (
            f"comes out differently here than by its own code ({apart:,.1f} times what rounding "
            "explains)"
        )

    def take_plain_path(self, why: str) -> None:
        """From now on, compute every text separately, with the model's own attention."""
        self._model.set_attn_implementation("eager")
        self._stack, self._plain_because = None, why

    def own_logprobs(self, groups: Sequence[TrainGroup]) -> torch.Tensor:
        """See `logprobs`; each text separately, with the model's own attention."""
        before = self._stack
        self._model.set_attn_implementation("sdpa")
        self._stack, self._plain_because = None, "for a comparison"
        try:
            return self.logprobs(groups)
        finally:
            self._model.set_attn_implementation(ATTENTION_NAME)
            self._stack, self._plain_because = before, None

    def _without_layout(self, model: Any, own: Reference) -> str | None:
        """Install our layout in this model's attention; return None, or why the model cannot take
        it.
        """
        self._plain_because = None
        if (kinds := not_covered(self._decoder.config)) is not None:
            return kinds
        model.set_attn_implementation(ATTENTION_NAME)
        if self._decoder.config._attn_implementation != ATTENTION_NAME:
            return "its attention does not take a layout (it never calls one)"
        try:
            self._stack = find_stack(self._decoder)
            prompt = Packed([4], [[]], self.device, keep_keys=True)
            with torch.no_grad():
                self._hidden(torch.tensor(own.texts[0][:4], device=self.device), prompt)
            if not prompt.keys:
                return "its attention does not take a layout (it never calls one)"
            found = states_of_line(own, self._hidden, self.device)
            if leak(own, self._hidden, self.device, found):
                return "completions that share a prompt are not kept apart by its layers"
            if agreement(own, self._hidden, self.device, found, decodes=True) > 1:
                return "with a shared prompt it gives other numbers than alone"
        except NotImplementedError as error:
            return str(error)
        except Exception as error:  # a model's own code can raise anything
            return f"its attention does not take a layout ({type(error).__name__}: {error})"
        return None

    def _behind_head(self, model: Any) -> Logits:
        """What the model computes between its last states and the output head, and after the head.

        Raises:
            InputError: when that is more than this engine supports.
        """
        bias = getattr(model.get_output_embeddings(), "bias", None)
        if bias is not None and bias.any():
            raise self.not_for_us("has a bias on its output head, which is not added here")
        found = logits_of(model, self._decoder)
        if found is None:
            raise self.not_for_us(
                "changes its logits after the output head by more than scaling or capping, which "
                "is not supported here",
            )
        return found

    def _longest(self, config: Any) -> int:
        """The longest text, in tokens, in which later tokens do not change what a
        position means.
        """
        for name in ("max_position_embeddings", "seq_length", "max_seq_len"):
            if found := getattr(config, name, None):
                return min(int(found), *stable_lengths(config), int(found))
        why = "has no max_position_embeddings in its config.json, which says how much it reads"
        raise self.not_for_us(why)

    def not_for_us(self, why: str) -> InputError:
        """The refusal of this model, for this reason."""
        return InputError(
            f"{self.name} ({type(self._model).__name__}) {why}: choose another model, or train it "
            "on a Tinker server (rftkit serve --engine tinker)",
            param="model",
        )

    def batch_tokens(self, groups: Sequence[TrainGroup]) -> tuple[int, int]:
        """Tokens of a micro-batch that keeps what backward needs; and of one that recomputes it."""
        if self._plain_because:
            return LEAST_TRAIN_TOKENS, 0  # prompts are not shared here anyway
        longest = max(len(g.prompt_ids) + max(map(len, g.tokens_G_T)) for g in groups)
        kept, again = self._kept_bytes(longest)
        budget = self.memory_bytes or MEMORY_BYTES
        fitting = LEAST_TRAIN_TOKENS if self._stack is None else budget // kept
        return max(LEAST_TRAIN_TOKENS, fitting), budget // again

    def _kept_bytes(self, seen: int) -> tuple[int, int]:
        """Roughly the bytes that a backward pass keeps for a token that sees `seen` others, in
        layers of Llama's form; and the bytes where layers are recomputed: the input of each in
        float32, and a few times what one layer keeps.
        """
        config = self._decoder.config
        layers, width = config.num_hidden_layers, config.hidden_size
        numbers = sum(sum(block.weight.shape) for block in self.blocks)
        numbers += layers * config.num_attention_heads * seen
        kept = numbers * self.dtype.itemsize
        return kept, 4 * layers * width + 4 * kept // layers

    def logprobs(self, groups: Sequence[TrainGroup], temperature: float = 1.0) -> torch.Tensor:
        """Log-prob of each completion token, (N,), end to end; 0 where there was no choice."""
        line = lay_out(groups, self._masks)
        _, some = self._wanted_logprobs(line, temperature)
        places = torch.tensor(line.places, device=self.device, dtype=torch.long)
        return torch.zeros(line.num_tokens, device=self.device).index_copy(0, places, some)

    def learnt(self, groups: Sequence[TrainGroup]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-prob of each token that is learnt, (N,), end to end; and was it the most likely?"""
        line = lay_out(groups, self._masks)
        states, logprobs = self._wanted_logprobs(line, 1.0)
        wanted = torch.tensor(line.wanted, device=self.device)
        with torch.no_grad():
            hits = logprobs > SURELY_FIRST  # the other rows need their logits again
            unsure = (~hits).nonzero()[:, 0]
            likely = most_likely(states.detach()[unsure], self.head, self.cap)
            hits[unsure] = likely == wanted[unsure]
        return logprobs, hits

    def _wanted_logprobs(self, line: Line, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """States (N, width) that predict the wanted tokens of a line, and their log-probs (N,)."""
        packed = Packed(
            line.prompt_lengths, line.completion_lengths, self.device, opening=line.opening
        )
        self._layers.allow(self.memory_bytes)
        states = self.hidden(torch.tensor(line.tokens, device=self.device), packed)  # (N, width)
        at, wanted = (
            torch.tensor(each, device=self.device, dtype=torch.long)
            for each in (line.at, line.wanted)
        )
        states = states[at]
        return states, token_logprobs(
            states,
            self.head,
            wanted,
            line.masks,
            temperature,
            self.head_for_gradients,
            self.cap,
        )

    def _masks(self, group: TrainGroup) -> Masks | None:
        """Grammar masks of a group's completion tokens, or None when nothing is constrained."""
        if group.schema is None and group.thinking is None:
            return None
        if not group.learnt_G_T:
            return self.grammars.replay(group.schema, group.tokens_G_T, group.thinking)
        return self.grammars.replay_turns(
            group.schema, group.tokens_G_T, group.learnt_G_T, group.thinking
        )


def _load_model(folder: Path, dtype: torch.dtype) -> Any:
    """A transformers model with its own attention."""
    from transformers import AutoModelForCausalLM

    model, info = _loaded(
        folder,
        lambda: AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", trust_remote_code=False,
            output_loading_info=True,
        ),
    )  # fmt: skip
    if missing := sorted(info["missing_keys"]):  # transformers would draw them at random
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise InputError(
            f"the weights in {folder} are not whole: {missing[0]}{more} is missing; copy the "
            "folder again",
            param="model",
        )
    return model


def _loaded(folder: Path, load: Callable[[], Any]) -> Any:
    """What a library makes of a folder; its reason in words when it can make nothing.

    Raises:
        InputError: with the reason.
    """
    try:
        return load()
    except ImportError as error:
        why = f"needs a library: {_why(error)}"
        raise InputError(f"the model in {folder} {why}", param="model") from error
    except Exception as error:  # whatever the files of a model make the library raise
        if isinstance(error, MemoryError) or temporary_problem(error):
            raise
        if "Unrecognized configuration class" in str(error):
            why = (
                f"transformers has no language model of its kind ({_model_type(folder)}). Models "
                "that see or hear are of no use here without a text model of their own"
            )
        elif "trust_remote_code" in str(error):
            why = "it needs code of its own (auto_map in its config.json), which is never run here"
        else:
            why = _why(error)
        raise InputError(f"the model in {folder} cannot be loaded: {why}", param="model") from error


def _why(error: Exception) -> str:
    """The reason of a library, without its line breaks and long lists."""
    return cut(" ".join(str(error).split()) or type(error).__name__, MAX_WHY)


def _model_type(folder: Path) -> str:
    config = parse_json((folder / "config.json").read_bytes())
    return f"model_type {config.get('model_type')!r}"


def _decoder_of(model: Any) -> Any:
    """The layers without the output head. transformers finds no decoder within Llama 4."""
    decoder = model.get_decoder()
    head = getattr(decoder, "get_output_embeddings", lambda: None)()
    return decoder if head is None else decoder.model


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread for the short texts of the checks, where a second one costs more than it
    helps.

    The number is put back: a job that trains on another model may be in the middle of a step.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _num_bytes(folder: Path) -> int:
    """Bytes of a model's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
