"""The embedded engine against transformers, against itself, and against PEFT."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rftkit.errors import InputError, RequestError
from rftkit.server.engine.torch.batches import micro_batches, with_advantage
from rftkit.server.engine.torch.decode import BLOCK_ROWS, ROOM
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.values import (
    Completion,
    LoraConfig,
    NotFiniteError,
    SampleRequest,
    StepStats,
    TrainGroup,
    TrainSettings,
)

ARCHITECTURES = ("Llama", "Qwen2", "Qwen3")
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"a": {"type": "string", "enum": ["x", "yy"]}, "n": {"type": "boolean"}},
        "required": ["a", "n"],
        "additionalProperties": False,
    }
)
SETTINGS = TrainSettings(learning_rate=1e-2)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def engine(folder: Path) -> TorchEngine:
    return TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    folder = write(tmp_path_factory.mktemp("llama"), "Llama")
    return TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)


def requests(engine: TorchEngine, *texts: str, **options: Any) -> list[SampleRequest]:
    """Two prompts of other lengths, several completions each."""
    options = {"max_tokens": 9, "seeds": [(1, i) for i in range(4)], **options}
    return [
        SampleRequest(engine.encode([{"role": "user", "content": text}]), **options)
        for text in texts or ("hello", "a much longer prompt than that")
    ]


def groups_from(
    asked: list[SampleRequest], answers: list[list[Completion]], schema: str | None = None
) -> list[TrainGroup]:
    return [
        TrainGroup(
            request.prompt_ids,
            [completion.tokens for completion in completions],
            [completion.sampling_logprobs for completion in completions],
            [(-1.0) ** g * (g + 1) / 2 for g in range(len(completions))],
            schema,
        )
        for request, completions in zip(asked, answers, strict=True)
    ]


def moved_policy(engine: TorchEngine, seed: int = 3) -> None:
    """A policy that is not the base any more."""
    engine.start_policy(LoraConfig(rank=4, alpha=8.0), seed)
    policy, _ = engine.policies.trained()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in policy.values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    for block in engine.blocks:
        block.refresh()


def policy_of(engine: TorchEngine) -> dict[str, torch.Tensor]:
    """A copy of the adapter."""
    return {name: tensor.detach().clone() for name, tensor in engine.policies.trained()[0].items()}


def plain_logprobs(folder: Path, adapter: Path | None, group: TrainGroup) -> list[float]:
    """The same log-probs by transformers alone, one sequence at a time, adapters by PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    result = []
    for tokens in group.tokens_G_T:
        ids = torch.tensor([group.prompt_ids + tokens])
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0, len(group.prompt_ids) - 1 : -1].float()
        picked = torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None])
        result += picked[:, 0].tolist()
    return result


def test_stored_log_probs_are_the_trainers_and_those_of_transformers(
    folder: Path, engine: TorchEngine, tmp_path: Path
) -> None:
    moved_policy(engine)
    asked = requests(engine)
    groups = groups_from(asked, engine.sample(asked))
    stored = [x for group in groups for row in group.sampling_logprobs_G_T for x in row]
    with torch.no_grad():
        trained = engine.logprobs(groups).tolist()
    assert trained == pytest.approx(stored, abs=1e-4)

    engine.save_adapter(tmp_path)
    plain = [x for group in groups for x in plain_logprobs(folder, tmp_path, group)]
    assert trained == pytest.approx(plain, abs=1e-4)


def test_greedy_text_is_that_of_generate(folder: Path, engine: TorchEngine) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = requests(engine, "hello", "and now", "c", max_tokens=12, temperature=0.0, seeds=[(0,)])
    for request, [completion] in zip(asked, engine.sample(asked, None), strict=True):
        ids = torch.tensor([request.prompt_ids])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
        )
        assert completion.tokens == expected[0, ids.shape[1] :].tolist()


def test_a_group_gives_the_gradient_of_its_members_alone(engine: TorchEngine) -> None:
    asked = requests(engine)
    moved_policy(engine)
    groups = groups_from(asked, engine.sample(asked))

    def gradient(batches: list[list[TrainGroup]]) -> torch.Tensor:
        policy, _ = engine.policies.trained()
        for tensor in policy.values():
            tensor.grad = None
        for batch in batches:
            loss = -engine.logprobs(batch, 1.0)
            weights = [
                a
                for g in batch
                for a, tokens in zip(g.advantages_G, g.tokens_G_T, strict=True)
                for _ in tokens
            ]
            (loss * torch.tensor(weights)).sum().backward()  # type: ignore[no-untyped-call]
        return torch.cat([t.grad.flatten() for t in policy.values() if t.grad is not None])

    together = gradient([groups])
    one_by_one = gradient(list(micro_batches(groups, 1)))
    assert len(list(micro_batches(groups, 1))) == 8
    assert together.abs().max() > 1e-3
    torch.testing.assert_close(together, one_by_one, atol=2e-5, rtol=1e-3)


def test_updates_raise_what_was_rewarded(llama: TorchEngine) -> None:
    llama.start_policy(LoraConfig(rank=4, alpha=8.0), 0)
    asked = requests(llama)
    groups = groups_from(asked, llama.sample(asked))
    with torch.no_grad():
        before = llama.logprobs(groups)
    stats = llama.train_step(groups, SETTINGS)
    with torch.no_grad():
        after = llama.logprobs(groups)
    weights = torch.tensor(
        [a for g in groups for a, t in zip(g.advantages_G, g.tokens_G_T, strict=True) for _ in t]
    )
    assert ((after - before) * weights).sum() > 0
    assert stats.logprob_gap_max < 1e-4
    assert stats.clip_fraction == 0.0
    assert stats.num_tokens == len(before)


def test_not_a_number_stops_the_update(llama: TorchEngine) -> None:
    llama.start_policy(LoraConfig(rank=4, alpha=8.0), 0)
    asked = requests(llama)
    [first, *_] = groups_from(asked, llama.sample(asked))
    broken = TrainGroup(
        first.prompt_ids, first.tokens_G_T, first.sampling_logprobs_G_T, [float("nan")] * 4
    )
    with pytest.raises(NotFiniteError, match="gradient norm") as caught:
        llama.train_step([first, broken], SETTINGS)
    assert caught.value.groups == [1]


@pytest.mark.parametrize("max_grad_norm", [1.0, 1e-3])
def test_saved_and_loaded_goes_on_bit_for_bit(
    llama: TorchEngine, tmp_path: Path, max_grad_norm: float
) -> None:
    """Where the norm is bounded too: it was once a sum in the order of a file after a load."""
    settings = dataclasses.replace(SETTINGS, max_grad_norm=max_grad_norm)
    asked = requests(llama)
    llama.start_policy(LoraConfig(rank=4, alpha=8.0), 5)
    groups = groups_from(asked, llama.sample(asked))
    llama.train_step(groups, settings)
    llama.save(tmp_path)

    def eight_more_steps() -> dict[str, torch.Tensor]:
        for _ in range(8):
            llama.train_step(groups, settings)
        return {
            name: tensor.detach().clone() for name, tensor in llama.policies.trained()[0].items()
        }

    straight = eight_more_steps()
    llama.load(tmp_path)
    resumed = eight_more_steps()
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_sampling_repeats_itself_and_does_not_depend_on_its_company(llama: TorchEngine) -> None:
    moved_policy(llama)
    asked = requests(llama)
    together = llama.sample(asked)
    assert llama.sample(asked) == together
    alone = [llama.sample([request])[0] for request in asked]
    assert [[c.tokens for c in group] for group in alone] == [
        [c.tokens for c in group] for group in together
    ]


def test_a_row_that_is_left_alone_reads_nothing_of_a_longer_prompt(llama: TorchEngine) -> None:
    """The others end first; what stood where their prompt was longer is not read as its own."""
    moved_policy(llama)
    [long, short] = requests(llama, "a much longer prompt", "hello", seeds=[(1, 0)], max_tokens=20)
    asked = [dataclasses.replace(long, max_tokens=2), short]
    answers = llama.sample(asked)
    assert len(answers[1][0].tokens) > 4, "it ended with the other: choose another prompt"
    groups = groups_from(asked, answers)
    with torch.no_grad():
        trained = llama.logprobs(groups).tolist()
    stored = [x for group in groups for row in group.sampling_logprobs_G_T for x in row]
    assert trained == pytest.approx(stored, abs=1e-4)
    assert answers[1][0].tokens == llama.sample([short])[0][0].tokens


def test_each_completion_has_its_own_draw(llama: TorchEngine) -> None:
    moved_policy(llama)
    [group] = llama.sample(requests(llama, "hello", seeds=[(1, i) for i in range(6)]))
    assert len({tuple(completion.tokens) for completion in group}) > 3


@pytest.mark.parametrize("schema", [None, SCHEMA])
def test_more_completions_than_share_a_line_of_keys(llama: TorchEngine, schema: str | None) -> None:
    """Long ones, so that lines grow; with a schema they end one by one, so that rows move."""
    seeds = [(7, i) for i in range(2 * BLOCK_ROWS + 3)]
    moved_policy(llama)
    asked = requests(llama, schema=schema, max_tokens=ROOM + 9, seeds=seeds)
    answers = llama.sample(asked)
    assert (len({len(c.tokens) for c in answers[0]}) > 1) == (schema is not None)
    groups = groups_from(asked, answers, schema)
    stored = [x for group in groups for row in group.sampling_logprobs_G_T for x in row]
    with torch.no_grad():
        trained = llama.logprobs(groups).tolist()
    assert trained == pytest.approx(stored, abs=1e-4)


def test_the_end_token_is_part_of_the_completion(llama: TorchEngine) -> None:
    [group] = llama.sample(requests(llama, "x", schema=SCHEMA, max_tokens=40))
    for completion in group:
        assert completion.stop_reason == "stop"
        assert completion.tokens[-1] in llama.eos_ids
        assert len(completion.tokens) == len(completion.sampling_logprobs)
    [cut] = llama.sample(requests(llama, "x", schema=SCHEMA, max_tokens=3, seeds=[(0,)]))
    assert cut[0].stop_reason == "length"


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**31), temperature=st.sampled_from([0.0, 0.7, 1.0, 2.0]))
def test_constrained_output_always_parses(
    llama: TorchEngine, seed: int, temperature: float
) -> None:
    [group] = llama.sample(
        requests(llama, "x", schema=SCHEMA, seeds=[(seed,)], max_tokens=64, temperature=temperature)
    )
    answer = json.loads(group[0].text)
    assert answer["a"] in ("x", "yy")
    assert isinstance(answer["n"], bool)


def test_forced_tokens_teach_nothing_and_masks_agree(llama: TorchEngine) -> None:
    moved_policy(llama)
    asked = requests(llama, schema=SCHEMA, max_tokens=40)
    answers = llama.sample(asked)
    groups = groups_from(asked, answers, SCHEMA)
    with torch.no_grad():
        trained = llama.logprobs(groups).tolist()
    stored = [x for group in groups for row in group.sampling_logprobs_G_T for x in row]
    assert trained == pytest.approx(stored, abs=1e-4)
    assert stored.count(0.0) > len(stored) / 2  # braces, keys, quotes
    assert min(stored) < -0.05


def test_constrained_and_free_rows_share_a_batch(llama: TorchEngine) -> None:
    free, bound = (
        requests(llama, "x", max_tokens=30)[0],
        requests(llama, "x", schema=SCHEMA, max_tokens=30)[0],
    )
    mixed = llama.sample([free, bound, free])
    assert mixed[0] == mixed[2]
    assert all(json.loads(completion.text) for completion in mixed[1])


def test_a_schema_that_cannot_be_compiled_is_refused(llama: TorchEngine) -> None:
    with pytest.raises(RequestError, match="schema cannot be compiled"):
        llama.grammars.matcher(json.dumps({"type": "nonsense"}))


def test_top_p_keeps_to_the_nucleus(llama: TorchEngine) -> None:
    moved_policy(llama)
    seeds = [(9, i) for i in range(20)]
    narrow = llama.sample(requests(llama, "hello", seeds=seeds, top_p=1e-6, max_tokens=3))
    greedy = llama.sample(requests(llama, "hello", seeds=[(0,)], temperature=0.0, max_tokens=3))
    assert {tuple(c.tokens) for c in narrow[0]} == {tuple(greedy[0][0].tokens)}


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(llama: TorchEngine) -> None:
    [[full]] = llama.sample(requests(llama, "hello", seeds=[(4,)], max_tokens=12))
    stop = full.text[2:4]
    [[cut]] = llama.sample(requests(llama, "hello", seeds=[(4,)], max_tokens=12, stop=(stop,)))
    assert cut.text == full.text[: full.text.index(stop)]
    assert cut.stop_reason == "stop"


def test_streamed_text_adds_up(llama: TorchEngine) -> None:
    pieces: dict[tuple[int, int], str] = {}

    def on_text(row: int, index: int, text: str) -> None:
        pieces[row, index] = pieces.get((row, index), "") + text

    answers = llama.sample(requests(llama), on_text=on_text)
    for row, group in enumerate(answers):
        for index, completion in enumerate(group):
            assert pieces.get((row, index), "") == completion.text


def test_each_completion_is_told_once_as_soon_as_it_has_ended(llama: TorchEngine) -> None:
    order: list[Any] = []
    asked = [
        dataclasses.replace(request, max_tokens=most)
        for request, most in zip(requests(llama, *"abc"), (9, 1, 5), strict=True)
    ]
    answers = llama.sample(
        asked,
        on_tick=lambda: order.append(None),
        on_completion=lambda row, index, completion: order.append((row, index, completion)),
    )
    told = [each for each in order if each is not None]
    assert sorted(told, key=lambda each: each[:2]) == [
        (row, index, completion)
        for row, group in enumerate(answers)
        for index, completion in enumerate(group)
    ]
    for row, index, completion in told:
        steps = order[: order.index((row, index, completion))].count(None)
        assert steps == len(completion.tokens) - 1


def test_adapters_swap_and_the_base_stays_the_base(llama: TorchEngine, tmp_path: Path) -> None:
    asked = requests(llama, temperature=0.0, seeds=[(0,)])
    base = llama.sample(asked, None)
    moved_policy(llama)
    policy = llama.sample(asked)
    llama.save_adapter(tmp_path / "a")
    llama.start_policy(LoraConfig(), 1)
    assert llama.sample(asked, tmp_path / "a") == policy
    assert llama.sample(asked, None) == base
    fresh = llama.sample(asked)  # adapters that change nothing, but are computed with
    assert [[c.tokens for c in g] for g in fresh] == [[c.tokens for c in g] for g in base]
    assert policy != base


def test_a_bias_on_the_head_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "Phi")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.bias"] += 1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="has a bias on its output head"):
        TorchEngine(folder, name="some-model", device="cpu")


@pytest.mark.parametrize(
    "architecture", ["Gemma", "GPTNeoX", "Nemotron", "OPT", "Phi", "Starcoder2"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_other_forms_sample_and_learn_by_one_function(
    architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Nemotron's attention takes no layout, and says so; the others share prompts."""
    engine = TorchEngine(
        write(tmp_path, architecture), name="some-model", device="cpu", dtype=dtype
    )
    engine.start_policy(LoraConfig(), 1)
    asked = requests(engine)
    stats = engine.train_step(groups_from(asked, engine.sample(asked)), TrainSettings(1e-3))
    assert stats.logprob_gap_mean < (0.02 if dtype == torch.bfloat16 else 1e-4)
    [note] = engine.notes(None, None)
    assert ("plain path: its attention does not take a layout" in note) == (
        architecture == "Nemotron"
    )


@pytest.mark.parametrize(("architecture", "sizes"), [("Falcon", {}), ("XGLM", {})])
def test_models_older_than_the_attention_interface_take_the_plain_path(
    architecture: str, sizes: dict[str, int], tmp_path: Path
) -> None:
    folder = write(tmp_path, architecture, **sizes)
    engine = TorchEngine(folder, name="some-model", device="cpu", dtype=torch.float32)
    [note] = engine.notes(None, None)
    assert "plain path: its attention does not take a layout (it never calls one)" in note
    [[completion]] = engine.sample(requests(engine, "hello", seeds=[(1,)]), None)
    assert completion.tokens
    if architecture == "Falcon":  # given tokens, since it mixes bfloat16 with our float32 states
        rounded = TorchEngine(folder, name="some-model", device="cpu", dtype=torch.bfloat16)
        [[completion]] = rounded.sample(requests(rounded, "hello", seeds=[(1,)]), None)
        assert completion.tokens


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("Mistral", {}),
        ("Gemma2", {"final_logit_softcapping": None}),
        ("Gemma3", {"sliding_window": 8}),
        ("Phi3", {"sliding_window": 8}),
    ],
)
def test_attention_that_is_not_covered_takes_the_plain_path_and_says_so(
    architecture: str, sizes: dict[str, int | None], tmp_path: Path
) -> None:
    folder = write(tmp_path / "base", architecture, **sizes)
    engine = TorchEngine(folder, name="some-model", device="cpu", dtype=torch.float32)
    [note] = engine.notes(None, None)
    assert note.startswith("some-model takes the plain path: attention with")
    moved_policy(engine)
    engine.save_adapter(tmp_path / "adapter")
    asked = requests(engine)
    groups = groups_from(asked, engine.sample(asked))
    with torch.no_grad():
        ours = engine.logprobs(groups).tolist()
    stored = [x for group in groups for row in group.sampling_logprobs_G_T for x in row]
    plain = [x for group in groups for x in plain_logprobs(folder, tmp_path / "adapter", group)]
    assert ours == pytest.approx(stored, abs=1e-4)
    assert ours == pytest.approx(plain, abs=1e-4)
    before = policy_of(engine)
    engine.train_step(groups, SETTINGS)
    assert any((policy_of(engine)[name] != before[name]).any() for name in before)


def test_the_plain_path_takes_completions_that_add_no_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rftkit.server.engine.torch.plain.TOKENS", 1)  # every text by itself
    folder = write(tmp_path / "base", "Mistral")
    engine = TorchEngine(folder, name="some-model", device="cpu", dtype=torch.float32)
    moved_policy(engine)
    engine.save_adapter(tmp_path / "adapter")
    asked = requests(engine, max_tokens=1)
    groups = groups_from(asked, engine.sample(asked))
    with torch.no_grad():
        ours = engine.logprobs(groups).tolist()
    plain = [x for group in groups for x in plain_logprobs(folder, tmp_path / "adapter", group)]
    assert ours == pytest.approx(plain, abs=1e-4)


def test_a_kl_that_is_only_looked_at_cannot_stop_an_update(
    llama: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved_policy(llama)
    asked = requests(llama)
    groups = groups_from(asked, llama.sample(asked))
    monkeypatch.setattr(
        "rftkit.server.engine.torch.update.kl_estimate", lambda policy, _: policy * float("inf")
    )
    assert llama.train_step(groups, SETTINGS).kl is None
    with pytest.raises(NotFiniteError):
        llama.train_step(groups, dataclasses.replace(SETTINGS, kl_coef=0.1))


def test_tokens_behind_the_last_advantage_are_left_out_and_change_nothing(
    llama: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(llama)
    groups = [
        dataclasses.replace(
            group,
            advantages_G_T=[
                [advantage * (t < 2 and g > 0) for t in range(len(tokens))]
                for g, (advantage, tokens) in enumerate(
                    zip(group.advantages_G, group.tokens_G_T, strict=True)
                )
            ],
        )
        for group in groups_from(asked, llama.sample(asked))
    ]

    def policy_after() -> tuple[StepStats, list[torch.Tensor]]:
        llama.start_policy(LoraConfig(rank=4, alpha=8.0), 0)
        stats = llama.train_step(groups, SETTINGS)
        return stats, [tensor.detach().clone() for tensor in llama.policies.trained()[0].values()]

    short, of_short = policy_after()
    monkeypatch.setattr("rftkit.server.engine.torch.update.with_advantage", lambda group: group)
    whole, of_whole = policy_after()
    assert all(len(t) <= 2 for g in map(with_advantage, groups) for t in g.tokens_G_T)
    assert all(len(with_advantage(g).tokens_G_T) == len(g.tokens_G_T) - 1 for g in groups)
    assert short.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
    assert (short.loss, short.entropy, short.num_tokens) == pytest.approx(
        (whole.loss, whole.entropy, whole.num_tokens), rel=1e-4, abs=1e-6
    )
    for ours, theirs in zip(of_short, of_whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
