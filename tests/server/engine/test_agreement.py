"""Architectures against transformers and PEFT: the same numbers, or a refusal in words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_archs import write_any
from engine_models import write
from safetensors.torch import load_file, save_file
from server.engine.test_torch import SETTINGS, groups_from, moved_policy, plain_logprobs

from rftkit.errors import InputError
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.values import LoraConfig, SampleRequest, TrainGroup

LENGTHS = (4, 19, 70)
"""Of prompts: beyond the windows and the chunks of the tiny models, too."""


def load(folder: Path) -> TorchEngine:
    return TorchEngine(folder, name="some-model", device="cpu", dtype=torch.float32)


def path_of(engine: TorchEngine) -> str:
    return "plain" if engine._plain_because else "fast"


def sampled(engine: TorchEngine) -> list[TrainGroup]:
    """Completions of random prompts, by the policy."""
    drawn = random.Random(0)
    tokens = range(len(engine.tokenizer))
    prompts = [drawn.choices(tokens, k=length) for length in LENGTHS]
    asked = [SampleRequest(prompt, [(1, i), (2, i)], 6) for i, prompt in enumerate(prompts)]
    return groups_from(asked, engine.sample(asked))


def check(folder: Path, engine: TorchEngine, adapter: Path, within: float = 1e-3) -> None:
    """Sampled, recomputed, and transformers' with PEFT's adapters are the same log-probs."""
    moved_policy(engine)
    groups = sampled(engine)
    stored = [x for group in groups for row in group.sampling_logprobs_G_T for x in row]
    with torch.no_grad():
        ours = engine.logprobs(groups).tolist()
    assert ours == pytest.approx(stored, abs=within)
    engine.save_adapter(adapter)
    theirs = [x for group in groups for x in plain_logprobs(folder, adapter, group)]
    assert ours == pytest.approx(theirs, abs=within)


@pytest.mark.parametrize(
    ("model_type", "path"),
    [
        ("falcon_h1", "plain"),  # state-space layers run on from one completion into the next
        ("diffllama", "plain"),  # asks for attention twice a layer
        ("doge", "plain"),  # adds a mask of its own
        ("nanochat", "fast"),  # caps its logits
        ("gemma2", "plain"),
        ("vaultgemma", "plain"),
        ("cohere", "fast"),  # scales its logits
        ("deepseek_v3", "plain"),  # experts, latent attention
        ("minicpm3", "plain"),
        ("ernie4_5_moe", "fast"),
        ("glm4_moe", "fast"),
        ("qwen3_next", "plain"),  # norms with a gate
        ("qwen3_5_text", "plain"),
        ("olmo_hybrid", "plain"),
        ("gemma3n_text", "plain"),  # looks its tokens up again in every layer
        ("llama4_text", "plain"),  # its router inherits from a linear layer
    ],
)
@pytest.mark.parametrize("std", [0.2, 0.02])
def test_sampled_recomputed_and_transformers_agree(
    model_type: str, path: str, std: float, tmp_path: Path
) -> None:
    """With small weights, too, where a wrong formula changes little."""
    folder = write_any(tmp_path / "base", model_type, std=std)
    engine = load(folder)
    assert path_of(engine) == path
    check(folder, engine, tmp_path / "adapter")


def test_qwen3_5_learns(tmp_path: Path) -> None:
    engine = load(write_any(tmp_path, "qwen3_5_text"))
    engine.start_policy(LoraConfig(rank=4, alpha=8.0), 1)
    groups = sampled(engine)
    before = {name: t.detach().clone() for name, t in engine.policies.trained()[0].items()}
    stats = engine.train_step(groups, SETTINGS)
    assert stats.logprob_gap_max < 1e-4
    after = engine.policies.trained()[0]
    assert any("linear_attn" in n and (after[n] != before[n]).any() for n in before)


def test_layers_that_peft_takes_for_experts_get_no_adapters_and_the_notes_say_so(
    tmp_path: Path,
) -> None:
    engine = load(write_any(tmp_path, "glm4_moe"))
    engine.start_policy(LoraConfig(rank=4, alpha=8.0), 1)
    names = {name.split(".")[-2] for name in engine.policies.trained()[0]}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert "named down_proj, gate_proj, up_proj get no adapters" in engine.notes(None, None)[-1]


def test_a_model_without_linear_layers_is_refused_adapters_in_words(tmp_path: Path) -> None:
    engine = load(write_any(tmp_path, "gpt2"))
    with pytest.raises(InputError, match="has no linear layers to put adapters on; train every"):
        engine.start_policy(LoraConfig(), 1)


def test_a_head_that_does_more_than_a_product_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="changes its logits after the output head by more"):
        load(write_any(tmp_path, "dory"))


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_a_model_reads_as_far_as_its_positions_stay_the_same(
    rope_type: str, tmp_path: Path
) -> None:
    """Beyond that, what a token was sampled with is not what it has when the text has gone on."""
    rope: dict[str, Any] = {
        "rope_type": rope_type,
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    if rope_type == "longrope":
        rope |= {"short_factor": [1.0] * 6, "long_factor": [4.0] * 6}
    folder = write(tmp_path / "base", "Llama", rope_parameters=rope)
    engine = load(folder)
    assert engine.context_tokens == 128
    check(folder, engine, tmp_path / "adapter")


@pytest.mark.parametrize("path", ["fast", "plain"])
def test_a_longer_text_given_straight_to_the_engine_is_refused_in_words(
    path: str, tmp_path: Path
) -> None:
    """It used to be computed with other angles than those of transformers, in silence."""
    rope = {
        "rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0,
        "original_max_position_embeddings": 128,
    }  # fmt: skip
    engine = load(write(tmp_path / "base", "Llama", rope_parameters=rope))
    if path == "plain":
        engine.take_plain_path("for a test")
    words = r"a text has 1\d\d tokens, and beyond 128 the positions of some-model change"

    def group(length: int) -> TrainGroup:
        return TrainGroup([1] * (length - 2), [[2, 3]], [[0.0, 0.0]], [1.0])

    with torch.no_grad():
        assert len(engine.logprobs([group(128)])) == 2
        with pytest.raises(InputError, match=words):
            engine.logprobs([group(130)])
        with pytest.raises(InputError, match=words):
            engine.embed([[1] * 129])
    [[fits]] = engine.sample([SampleRequest([1] * 120, [(1,)], 8)], None)
    assert len(fits.tokens) <= 8
    for prompt, most in ((130, 4), (120, 60)):
        asked = SampleRequest([1] * prompt, [(n,) for n in range(8)], most)
        with pytest.raises(InputError, match=words):
            engine.sample([asked], None)


def without(name: str, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def changed(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


FLAWED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "one that sees": (lambda f: changed(f, model_type="mistral3"), r"no language model .*mistral3"),
    "an unknown type": (
        lambda f: changed(f, model_type="brandnew"),
        "be loaded: .*brandnew",
    ),
    "another width": (lambda f: changed(f, hidden_size=64), "cannot be loaded: "),
    "a type that is a list": (lambda f: changed(f, model_type=["a"]), "cannot be loaded: "),
    "half of the weights": (cut, "cannot be loaded: "),
    "a layer too few": (
        lambda f: without("model.layers.2.mlp.up_proj.weight", f),
        "are not whole: model.layers.2.mlp.up_proj.weight is missing",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "cannot be loaded: "),
}


@pytest.mark.parametrize("flaw", FLAWED)
def test_a_folder_that_cannot_be_loaded_is_named_with_the_reason(flaw: str, tmp_path: Path) -> None:
    """A missing layer would be drawn at random, in silence."""
    spoil, words = FLAWED[flaw]
    spoil(write_any(tmp_path, "qwen3"))
    with pytest.raises(InputError, match=words) as caught:
        load(tmp_path)
    assert len(caught.value.message) < 800
    assert caught.value.param == "model"


def outcome(model_type: str, folder: Path) -> str:
    """`fast`, `plain` or `refused: words`, after a comparison with transformers and PEFT."""
    base = write_any(folder / "base", model_type)
    try:
        engine = load(base)
        check(base, engine, folder / "adapter", within=5e-3)
    except InputError as error:
        return f"refused: {error}"
    return path_of(engine)


TABLE: dict[str, str] = {
    "fast": """
        apertus apertus1p5_text arcee aria_text biogpt bitnet cohere dots1 ernie4_5 ernie4_5_moe
        exaone flex_olmo fuyu gemma glm glm4 glm4_moe got_ocr2 gpt_bigcode gpt_neox granite
        granitemoe granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax
        internlm3
        iquestcoder jais2 jetmoe laguna lfm2 llama mellum minimax_m2 minimax_m3_vl_text nanochat
        olmo olmo2 olmoe opt persimmon qwen2 qwen2_moe qwen3 qwen3_moe sarvam_moe seed_oss smollm3
        solar_open
    """,
    "plain": """
        afmoe axk1 axk2 bamba beam cohere2 cohere2_moe cwm deepseek_v2 deepseek_v3 deepseek_v32
        deepseek_v4 diffllama doge dots3_note_text exaone4 exaone_moe falcon falcon_h1 flint gemma2
        gemma3 gemma3_text gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text
        glm4_moe_lite glm_moe_dsa gpt_neo gpt_neox_japanese gpt_oss granite_swa granitemoe_swa
        granitemoehybrid hrm_text hy_v4 inkling_text jamba kolibri1 lara_mini lfm2_moe lfm3 llama4
        llama4_text longcat_flash mimo_v2_flash minicpm3 minimax ministral ministral3 mistral
        mixtral mpt nemotron nemotron_h olmo3 olmo_hybrid phi3 phimoe qwen3_5 qwen3_5_moe
        qwen3_5_moe_text qwen3_5_text qwen3_next rwkv sarvam_mla stablelm starcoder2 vaultgemma xglm
        youtu zamba2 zaya
    """,
    "refused: ": """
        bailing_hybrid bloom codegen cpmant ctrl dory falcon_mamba git gpt-sw3 gpt2 gptj
        kimi_linear mamba mamba2 modernbert-decoder openai-gpt phi recurrent_gemma rembert
        roc_bert roformer xlnet xlstm xmod
    """,
}
"""What tiny models of each type come to; `OMITTED` has the others."""
OMITTED: dict[str, str] = {
    "encoders, or decoders behind an encoder; nobody samples answers to a prompt from them": """
        bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small camembert
        data2vec-text electra ernie marian mbart megatron-bert mvp pegasus plbart prophetnet
        roberta roberta-prelayernorm trocr whisper xlm xlm-roberta xlm-roberta-xl
    """,
    "of sound, music or pictures; their text models are in the table where they are any": """
        dots3_note emu3 gemma3n mllama moshi moss_transcribe_diarize musicgen musicgen_melody
        phi4_multimodal
    """,
    "drafts for another model": "gemma4_assistant gemma4_unified_assistant",
    "no tokenizer of ours: bytes in patches": "blt",
    "no tiny model of them could be made or saved with transformers 5.24": """
        cohere_compass_text dbrx inkling2_loop_text inkling2_text qwen4_exp qwen4_exp_text reformer
        zamba
    """,
}
"""Why there is no row of a type that transformers has."""


@pytest.mark.slow
def test_every_type_of_transformers_is_in_the_table_or_has_a_reason_not_to_be() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    rows = (*TABLE.values(), *OMITTED.values())
    known = {name for names in rows for name in names.split()}
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) <= known


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "expected"),
    [(name, path) for path, names in TABLE.items() for name in names.split()],
)
def test_every_architecture_is_right_or_refused_in_words(
    model_type: str, expected: str, tmp_path: Path
) -> None:
    found = outcome(model_type, tmp_path)
    assert found.startswith(expected), found


def prompts_of(engine: TorchEngine) -> list[list[int]]:
    drawn = random.Random(0)
    return [drawn.choices(range(len(engine.tokenizer)), k=length) for length in LENGTHS]


@pytest.mark.parametrize(("model_type", "path"), [("qwen3", "fast"), ("mistral", "plain")])
def test_before_a_job_its_prompts_are_compared(model_type: str, path: str, tmp_path: Path) -> None:
    engine = load(write_any(tmp_path, model_type))
    note = engine.compare(prompts_of(engine))
    assert note is not None
    assert note.startswith(f"some-model takes the {path} path. On prompts of 4 to 70 tokens")
    assert float(note.split("differ by ")[1].split()[0]) < 1e-4
    assert engine.compare([]) is None


def test_what_parts_on_long_prompts_alone_takes_the_plain_path_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(write_any(tmp_path, "qwen3"))
    hidden = TorchEngine.hidden

    def late(self: TorchEngine, tokens: torch.Tensor, layout: Any) -> torch.Tensor:
        """An engine that goes wrong at position 40, on the fast path alone."""
        states = hidden(self, tokens, layout)
        if self._plain_because is None:
            states[layout.positions >= 40] *= 0.5
        return states

    monkeypatch.setattr(TorchEngine, "hidden", late)
    note = engine.compare(prompts_of(engine))
    assert note is not None
    assert note.startswith("some-model takes the plain path")
    assert "differ by" in engine.notes(None, None)[0]

    def unlike(self: TorchEngine, groups: list[TrainGroup], _: float = 1.0) -> torch.Tensor:
        return torch.zeros(sum(len(t) for group in groups for t in group.tokens_G_T))

    monkeypatch.setattr(TorchEngine, "logprobs", unlike)
    with pytest.raises(InputError, match="gives other log-probs when it samples than when"):
        engine.compare(prompts_of(engine))
