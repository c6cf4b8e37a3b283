"""Learning from given answers: what of a conversation is trained, and TRL's loss and gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server.engine.test_torch import moved_policy

from rftkit.errors import InputError
from rftkit.server.engine.prompts import conversation
from rftkit.server.engine.tiny import _tokenizer
from rftkit.server.engine.torch.batches import lay_out
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.torch.logprobs import most_likely
from rftkit.server.engine.torch.texts import packed
from rftkit.server.engine.values import LoraConfig, Pair, Text, TrainSettings

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's own

STILL = TrainSettings(0.0, max_grad_norm=1e9)
GENERATION = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<a>{% generation %}"
    "{{ message['content'] }}<end>{% endgeneration %}{% else %}<{{ message['role'][0] }}>"
    "{{ message['content'] }}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<a>"
    "{% endif %}"
)
"""The tiny template, its answers marked as TRL needs them marked."""
POLICY = "a policy that every row begins with. "
ROWS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": f"{POLICY}{question}"}, {"role": "assistant", "content": answer}]
    for question, answer in (("one", "yes"), ("two", "no, never"), ("three", ""), ("two", "maybe"))
] + [
    [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi", "weight": 0},
        {"role": "user", "content": "and now"},
        {"role": "assistant", "content": "bye"},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "bye bye", "weight": 1},
    ],
]


def trained(messages: list[dict[str, Any]]) -> list[int]:
    return [
        i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight", 1) != 0
    ]


def texts_of(engine: TorchEngine, rows: list[list[dict[str, Any]]] = ROWS) -> list[Text]:
    return [text for row in rows for text in engine.conversation(row, trained(row))]


def shown(tokenizer: Any, text: Text) -> str:
    """The text with what is trained in brackets."""
    parts, inside = [], False
    for token, is_trained in zip(text.tokens, text.trained, strict=True):
        if is_trained != inside:
            parts.append("[" if is_trained else "]")
            inside = is_trained
        parts.append(tokenizer.decode([token], skip_special_tokens=False))
    return "".join(parts) + ("]" if inside else "")


# ── what is trained ──────────────────────────────────────────────────────────────────────────


def test_answers_and_the_tokens_that_end_them_are_trained_and_nothing_else() -> None:
    tokenizer = _tokenizer()
    ends = {tokenizer.eos_token_id}
    [text] = conversation(tokenizer, ROWS[4], trained(ROWS[4]), end_ids=ends)
    assert shown(tokenizer, text) == (
        "<s>be brief<end><u>hello<end><a>hi<end><u>and now<end><a>[bye<end>]<u>again<end><a>"
        "[bye bye<end>]"
    )


def with_template(template: str) -> Any:
    tokenizer = _tokenizer()
    tokenizer.chat_template = template
    return tokenizer


OPEN = "{% for m in messages %}<{{ m['role'][0] }}>"
DONE = "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
TURNS = [
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": "one"},
    {"role": "user", "content": "y"},
    {"role": "assistant", "content": "two"},
]
TEMPLATES = {
    # a line break behind the end of a turn is not learnt
    OPEN + "{{ m['content'] }}<end>\n" + DONE:
        ["<u>x<end>\n<a>[one<end>]\n<u>y<end>\n<a>[two<end>]"],
    # the end of a turn is written with the next message: an answer ends all the same
    OPEN.replace("%}<", "%}{% if not loop.first %}<end>{% endif %}<", 1)
    + "{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<end><a>{% endif %}":
        ["<u>x<end><a>[one<end>]<u>y<end><a>[two<end>]"],
    # no end at all
    OPEN + "{{ m['content'] }}" + DONE: ["<u>x<a>[one<end>]", "<u>x<a>one<u>y<a>[two<end>]"],
    # thoughts of past answers are dropped: each answer has a text of its own
    OPEN + "{% if loop.last and m['role'] == 'assistant' %}(thought){% endif %}"
    "{{ m['content'] }}<end>" + DONE: [
        "<u>x<end><a>[(thought)one<end>]", "<u>x<end><a>one<end><u>y<end><a>[(thought)two<end>]",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("template", "wanted"), TEMPLATES.items())
def test_every_template_trains_what_a_chat_would_sample(template: str, wanted: list[str]) -> None:
    tokenizer = with_template(template)
    found = conversation(tokenizer, TURNS, [1, 3], end_ids={tokenizer.eos_token_id})
    assert [shown(tokenizer, text) for text in found] == wanted


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        (OPEN + "{{ m['content'] }}<end>{% endfor %}{% if add_generation_prompt %}<a>(thinks)"
         "{% endif %}", TURNS, "ends the prompt with '<u>x<end><a>\\(thinks\\)'"),
        (OPEN + "{{ m['content'] }}<end>" + DONE, TURNS[1:], "first message is the assistant's"),
        (OPEN + "{{ m['content'] }}<end>" + DONE,
         [{"role": "user", "content": "say <end>"}, TURNS[1]], "has '<end>', a control token"),
        ("{{ raise_exception('no') }}", TURNS, "refuses these messages"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused_in_words(
    template: str, messages: list[dict[str, Any]], words: str
) -> None:
    tokenizer = with_template(template)
    with pytest.raises(InputError, match=words):
        conversation(tokenizer, messages, trained(messages), end_ids={tokenizer.eos_token_id})


# ── what begins alike ────────────────────────────────────────────────────────────────────────


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 30), st.integers(0, 9)),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=60, deadline=None)
def test_packed_texts_are_the_same_texts(shapes: list[tuple[int, int, int, int]]) -> None:
    texts = [
        Text([*[kind] * shared, *[100 + own] * length], [False] * shared + [True] * length)
        for kind, shared, length, own in shapes
    ]
    groups, order = packed(texts)
    back = [
        Text(group.prompt_ids + rest, [False] * len(group.prompt_ids) + learnt)
        for group in groups
        for rest, learnt in zip(group.tokens_G_T, group.learnt_G_T, strict=True)
    ]
    assert sorted(order) == list(range(len(texts)))
    assert back == [texts[index] for index in order]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("base"), "Llama")


@pytest.fixture(scope="module")
def engine(folder: Path) -> TorchEngine:
    engine = TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)
    moved_policy(engine)
    return engine


def test_rows_with_a_common_beginning_are_put_together(engine: TorchEngine) -> None:
    groups, _ = packed(texts_of(engine))
    assert sorted(len(group.tokens_G_T) for group in groups) == [1, 4]


def test_what_all_rows_share_is_no_reason_to_put_them_together() -> None:
    """It is computed once in any case; what only some share decides."""
    rows = [(1, 1), (1, 2), (2, 3), (2, 4), (3, 5)]
    texts = [
        Text(
            [7] * 20 + [100 + some] * (30 if some < 3 else 1) + [200 + own] * 20,
            [False] * (50 if some < 3 else 21) + [True] * 20,
        )
        for some, own in rows
    ]
    groups, _ = packed(texts)
    assert [(len(g.prompt_ids), len(g.tokens_G_T)) for g in groups] == [(50, 2), (50, 2), (21, 1)]


def test_the_most_likely_tokens_are_found(engine: TorchEngine) -> None:
    """Those more likely than not need no second look at the logits, and the others get one."""
    text = texts_of(engine)[:1]
    start = engine.policies.trained()[0]
    before = {name: each.detach().clone() for name, each in start.items()}
    for _ in range(40):
        engine.imitate(text, TrainSettings(0.05))
    groups, _ = packed(text)
    logprobs, hits = engine.learnt(groups)
    line = lay_out(groups, engine._masks)
    states, _ = engine._wanted_logprobs(line, 1.0)
    wanted = torch.tensor(line.wanted)
    assert (logprobs > math.log(0.51)).any()
    assert torch.equal(hits, most_likely(states.detach(), engine.head) == wanted)
    with torch.no_grad():
        for name, each in start.items():
            each.copy_(before[name])
    engine.policies.apply_update()


@given(st.data())
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_how_a_batch_is_split_changes_nothing(engine: TorchEngine, data: st.DataObject) -> None:
    texts = texts_of(engine)
    cut = data.draw(st.integers(1, len(texts) - 1))
    whole = engine.imitate(texts, None)
    parts = [engine.imitate(some, None) for some in (texts[:cut], texts[cut:])]
    num = sum(part.num_tokens for part in parts)
    assert whole.num_tokens == num
    assert whole.loss == pytest.approx(sum(p.loss * p.num_tokens for p in parts) / num, abs=1e-5)
    assert whole.accuracy == pytest.approx(
        sum((p.accuracy or 0) * p.num_tokens for p in parts) / num
    )


# ── TRL ──────────────────────────────────────────────────────────────────────────────────────


def gradients(engine: TorchEngine, *, full: bool = False) -> dict[str, torch.Tensor]:
    """Ours, by the names that TRL's model has."""
    found = {}
    for name, tensor in engine.policies.trained()[0].items():
        if tensor.grad is not None:
            peft = f"base_model.model.{name[:-2]}.lora_{name[-1]}.default.weight"
            found[name if full else peft] = tensor.grad
    return found


def model_of(engine: TorchEngine, folder: Path, saved: Path | None) -> Any:
    """TRL's model with the weights of the policy: adapters that were saved, or all."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if saved is not None:
        return PeftModel.from_pretrained(base, saved, is_trainable=True)
    state = {name: each.detach() for name, each in engine.policies.trained()[0].items()}
    base.load_state_dict(state, strict=False)
    return base


def same_gradients(ours: dict[str, torch.Tensor], model: Any) -> None:
    theirs = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=2e-5, rtol=1e-3, msg=name)


def config(kind: Any, tmp_path: Path, **options: Any) -> Any:
    return kind(
        output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none",
        per_device_train_batch_size=8, gradient_checkpointing=False, max_length=None, **options,
    )  # fmt: skip


def sft_loss(
    engine: TorchEngine, folder: Path, tmp_path: Path, rows: list[Any], **options: Any
) -> Any:
    """Loss of TRL's SFTTrainer on one batch, and its model with gradients."""
    import trl
    from transformers import AutoTokenizer

    import datasets

    is_full = engine.policies._config is None
    if not is_full:
        engine.save_adapter(tmp_path)
    model = model_of(engine, folder, None if is_full else tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = GENERATION
    trainer = trl.SFTTrainer(
        model,
        args=config(trl.SFTConfig, tmp_path, packing=False, **options),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return float(loss), trainer.model


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_supervised_loss_and_gradients_are_those_of_trl(
    tuning: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    engine = TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)
    if tuning == "full":
        engine.start_policy(None, 1)
    else:
        moved_policy(engine)
    stats = engine.imitate(texts_of(engine), STILL)
    labelled = [
        {
            "input_ids": text.tokens,
            "labels": [t if on else -100 for t, on in zip(text.tokens, text.trained, strict=True)],
        }
        for text in texts_of(engine)
    ]
    loss, model = sft_loss(engine, folder, tmp_path, labelled)
    assert stats.loss == pytest.approx(loss, abs=1e-5)
    same_gradients(gradients(engine, full=tuning == "full"), model)


def test_our_mask_is_that_of_assistant_only_loss(
    engine: TorchEngine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    rows = [[{k: v for k, v in m.items() if k != "weight"} for m in row] for row in ROWS]
    stats = engine.imitate(texts_of(engine, rows), STILL)
    given = [{"messages": row} for row in rows]
    loss, model = sft_loss(engine, folder, tmp_path, given, assistant_only_loss=True)
    assert stats.loss == pytest.approx(loss, abs=1e-5)
    same_gradients(gradients(engine), model)


PAIRS = [
    ([{"role": "user", "content": f"{POLICY}{question}"}], good, bad)
    for question, good, bad in (
        ("one", "yes", "no"), ("two", "no, never", "no"), ("three", "maybe", "not at all"),
    )
]  # fmt: skip


def pairs_of(engine: TorchEngine) -> list[Pair]:
    def text(prompt: list[dict[str, Any]], answer: str) -> Text:
        messages = [*prompt, {"role": "assistant", "content": answer}]
        [found] = engine.conversation(messages, [len(prompt)])
        return found

    return [Pair(text(prompt, good), text(prompt, bad)) for prompt, good, bad in PAIRS]


def referred(engine: TorchEngine, start: Path | None) -> list[Pair]:
    pairs = pairs_of(engine)
    found = engine.answer_logprobs(pairs, start)
    return [
        Pair(pair.preferred, pair.non_preferred, sums)
        for pair, sums in zip(pairs, found, strict=True)
    ]


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("from_adapter", [False, True])
def test_dpo_loss_and_gradients_are_those_of_trl(
    beta: float, from_adapter: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import datasets

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    engine = TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)
    moved_policy(engine)
    start = None
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if from_adapter:
        start = tmp_path / "start"
        start.mkdir()
        engine.save_adapter(start)
        reference = model_of(engine, folder, start).merge_and_unload()
    for tensor in engine.policies.trained()[0].values():
        tensor.data.add_(0.02)
    engine.policies.apply_update()
    now = tmp_path / "now"
    now.mkdir()
    engine.save_adapter(now)
    pairs = referred(engine, start)
    stats = engine.prefer(pairs, beta, STILL)
    trainer = trl.DPOTrainer(
        model_of(engine, folder, now),
        ref_model=reference,
        args=config(trl.DPOConfig, tmp_path, beta=beta),
        train_dataset=datasets.Dataset.from_list(
            [
                {
                    "prompt": prompt,
                    "chosen": [{"role": "assistant", "content": good}],
                    "rejected": [{"role": "assistant", "content": bad}],
                }
                for prompt, good, bad in PAIRS
            ]
        ),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    assert stats.loss == pytest.approx(float(loss), abs=1e-5)
    assert abs(stats.loss - math.log(2)) > 1e-3
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert stats.preferred_reward == pytest.approx(logged["rewards/chosen"], abs=1e-4)
    assert stats.non_preferred_reward == pytest.approx(logged["rewards/rejected"], abs=1e-4)
    assert stats.margin == pytest.approx(logged["rewards/margins"], abs=1e-4)
    assert stats.reward_accuracy == pytest.approx(logged["rewards/accuracies"])
    assert stats.accuracy == pytest.approx(logged["mean_token_accuracy"])
    same_gradients(gradients(engine), trainer.model)


@pytest.mark.parametrize("config", [LoraConfig(), None], ids=["lora", "full"])
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_first_step_of_dpo_has_the_loss_of_a_coin(
    folder: Path, config: LoraConfig | None, beta: float
) -> None:
    engine = TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)
    engine.start_policy(config, 1)
    stats = engine.prefer(referred(engine, None), beta, STILL)
    assert stats.loss == pytest.approx(math.log(2), abs=1e-6)
    assert stats.preferred_reward == pytest.approx(0.0, abs=1e-5)
    assert stats.reward_accuracy <= 0.5  # a tie counts as wrong, up to rounding


def test_the_loss_of_dpo_by_hand(engine: TorchEngine) -> None:
    """π −10, −12; reference −10.5, −11: a margin of 1.5 log-ratios."""
    [pair] = pairs_of(engine)[:1]
    [(good, bad)] = engine.answer_logprobs([pair], "policy")  # type: ignore[arg-type]
    moved = Pair(pair.preferred, pair.non_preferred, (good - 0.5, bad + 1.0))
    for beta, loss in ((0.1, 0.620957), (1.0, 0.201413), (2.0, 0.048587)):
        stats = engine.prefer([moved], beta, None)
        assert stats.loss == pytest.approx(loss, abs=1e-4)
        assert stats.preferred_reward == pytest.approx(0.5 * beta, abs=1e-4)
        assert stats.non_preferred_reward == pytest.approx(-1.0 * beta, abs=1e-4)
