"""A checked export: loaded by the user's tool, it says what the platform says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_models
import pytest
from export_bases import (
    BASES,
    NAME,
    PLAIN,
    char_base,
    home_with,
    sentencepiece_base,
)
from typer.testing import CliRunner

from rftkit.cli.app import app
from rftkit.errors import InputError, NotFoundError, PlatformError, RftkitError
from rftkit.graders import validate
from rftkit.jobs import weights as client_side
from rftkit.server.store.store import Store
from rftkit.server.worker.exports import export as exports
from rftkit.server.worker.exports import folders, gguf_file, gguf_tokens, ollama
from rftkit.server.worker.exports.check import compare, limit_of
from rftkit.server.worker.exports.export import Wanted, export
from rftkit.server.worker.exports.held_out import HeldOut
from rftkit.server.worker.exports.rewards import difference, grade_both

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou help.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST] {{ message['content'] }} [/INST]{% else %}{{ message['content'] }}</s>{% endif %}"
    "{% endfor %}"
)


@pytest.fixture
def home_here(tmp_path: Path) -> Path:
    """With the simplest base."""
    return home_with(tmp_path, BASES["tokenizer.json, own head"])


def exported(home: Path, form: str, quantize: str | None = None, rows: int = 2) -> Any:
    out = home.parent / f"out-{form}-{quantize}"
    out.mkdir()
    return export(home, NAME, out, Wanted(form, quantize, rows)), out


@pytest.mark.parametrize("base", BASES)
def test_every_base_answers_the_same_in_every_format(tmp_path: Path, base: str) -> None:
    home = home_with(tmp_path, BASES[base])
    for form, quantize in (("peft", None), ("merged", None), ("gguf", "f32")):
        report, out = exported(home, form, quantize)
        assert report["result"] == "same", report
        for each in report["tools"]:
            assert each["same_answers"] + each["near_ties"] == each["answers"] == 2
            assert each["logprob_gap_mean"] < 0.01 < each["training_changed"]
            assert each["same_prompts"] == each["prompts"]
            assert each["prompts"] == (0 if each["tool"].startswith("transf") and quantize else 2)
        assert not (out / "EXPORT_FAILED.md").exists()
        assert json.loads((out / "export_check.json").read_text()) == report


def test_a_chat_with_the_written_folder_stops_where_the_platform_stops(home_here: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    _, out = exported(home_here, "merged")
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ends = folders.end_tokens_of(home_here.parent / "base")
    assert GenerationConfig.from_pretrained(out).eos_token_id in (ends, ends[0])
    head = model.get_output_embeddings().weight
    head.data[:] = 0
    chat = [{"role": "user", "content": "Hello"}]
    given = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    state = model(**given, output_hidden_states=True).hidden_states[-1][0, -1]
    head.data[ends[0]] = state / state.norm()  # the end is the most likely token
    said = model.generate(**given, do_sample=False, max_new_tokens=20)
    assert said.shape[1] == given["input_ids"].shape[1] + 1


def lose_training(patch: pytest.MonkeyPatch) -> None:
    plain = folders.merged_model

    def merged_model(source: Any, dtype: Any) -> Any:
        import dataclasses

        return plain(dataclasses.replace(source, model=None), dtype)

    patch.setattr(folders, "merged_model", merged_model)
    patch.setattr(gguf_file, "merged_model", merged_model)


def change_template(patch: pytest.MonkeyPatch) -> None:
    plain = folders._write_tokenizer

    def write(base: Path, out: Path) -> None:
        plain(base, out)
        (out / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")

    patch.setattr(folders, "_write_tokenizer", write)


def lose_rotation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gguf_file, "_interleaved", lambda weight, heads: weight)


@pytest.mark.parametrize(
    ("form", "harm", "said"),
    [
        ("merged", lose_training, "it answers like the base model"),
        ("gguf", lose_training, "it answers like the base model"),
        ("merged", change_template, "2 of 2 prompts have other tokens"),
        ("peft", change_template, "2 of 2 prompts have other tokens"),
        ("gguf", lose_rotation, "log-probs differ by"),
    ],
)
def test_what_is_not_the_model_is_marked(
    home_here: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    harm: Callable[[pytest.MonkeyPatch], None],
    said: str,
) -> None:
    harm(monkeypatch)
    report, out = exported(home_here, form, "f32" if form == "gguf" else None)
    assert report["result"] == "differs"
    assert said in " ".join(report["tools"][0]["problems"])
    assert said in (out / "EXPORT_FAILED.md").read_text()
    assert said in (out / "README.md").read_text()


def test_an_end_token_that_is_missing_is_found(home_here: Path) -> None:
    """The tool goes on where the platform stops."""
    from rftkit.server.worker.exports.held_out import held_out
    from rftkit.server.worker.exports.reference import Answer, Reference
    from rftkit.server.worker.exports.source import find_source

    store = Store.open(home_here)
    rows = held_out(find_source(store, home_here, NAME), 1)
    store.close()

    class Endless:
        name = "endless"

        def encode(self, messages: Any) -> list[int]:
            return [1, 2]

        def answers(self, prompts: Any, max_tokens: int) -> list[list[int]]:
            return [[5, 6, 0, 7, 7]]

        def scores(self, prompt: list[int], answer: list[int]) -> Any:
            return [-1.0] * len(answer), [-1.0] * len(answer)

    answer = Answer([1, 2], [5, 6, 0], True, "ab", [-1.0] * 3, [-2.0] * 3)
    reference = Reference([answer], "float32")
    found = compare(rows, reference, Endless(), limit_of(reference, None), is_templated=True)
    assert (found.ended, found.same_ends) == (1, 0)
    assert found.problems == [
        "1 of 1 answers do not stop where they stop on the platform: an end token is missing"
    ]


def test_a_tie_is_no_error_and_a_sure_other_token_is() -> None:
    from rftkit.server.worker.exports.check import _kind
    from rftkit.server.worker.exports.reference import Answer

    answer = Answer([1], [5, 6, 0], True, "", [], [])
    scores = ([-0.7, -0.70, -0.1], [-0.7, -0.69, -0.1])
    assert _kind(answer, [5, 6, 0], scores, 0.02) == "same"
    assert _kind(answer, [5, 8, 0], scores, 0.02) == "near tie"
    assert _kind(answer, [5, 8, 0], scores, 0.005) == "different"
    assert _kind(answer, [5, 6], scores, 0.02) == "different"


def test_quantized_files_say_how_much_they_lost(home_here: Path) -> None:
    report, out = exported(home_here, "gguf", "q8_0")
    [each] = report["tools"]
    assert report["result"] == "same"
    assert each["logprob_gap_limit"] == 0.1
    assert (out / "model-q8_0.gguf").is_file()
    assert "FROM ./model-q8_0.gguf" in (out / "Modelfile").read_text()
    assert "llama-server -m model-q8_0.gguf --jinja" in (out / "README.md").read_text()


def test_what_is_not_installed_is_reported_not_passed_over(
    home_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "is_installed", lambda module: False)
    for module in (exports, gguf_file):
        monkeypatch.setattr(module, "has_llama_cpp", lambda: False)
    report, out = exported(home_here, "peft")
    assert report["result"] == "not checked"
    assert "Not checked: PEFT is not installed" in (out / "README.md").read_text()
    report, _ = exported(home_here, "gguf", "f32")
    assert report["tools"][0]["tool"].startswith("transformers")
    assert "pip install cyllama" in report["not_checked"][0]
    for quantize, said in (
        ("q4_k_m", "pip install cyllama"),
        ("q9", "there is no quantization 'q9'"),
    ):
        with pytest.raises(InputError, match=said):
            exported(home_here, "gguf", quantize)


@pytest.mark.parametrize("base", [name for name in BASES if "own" in name])
def test_llama_cpp_answers_the_same_from_the_file(tmp_path: Path, base: str) -> None:
    """Its tokenizer, the template, the weights and the ends."""
    pytest.importorskip("cyllama", reason="pip install cyllama")
    home = home_with(tmp_path, BASES[base])
    report, _ = exported(home, "gguf", "f32", rows=8)
    [each] = report["tools"]
    assert each["tool"].startswith("llama.cpp (cyllama ")
    assert report["result"] == "same", report
    assert each["same_prompts"] == each["prompts"] == 8


def test_llama_cpp_writes_its_own_quantizations(tmp_path: Path) -> None:
    pytest.importorskip("cyllama", reason="pip install cyllama")
    wide = {"hidden_size": 256, "intermediate_size": 256}  # as a block of the k-quants
    home = home_with(tmp_path, lambda folder: char_base(folder, **wide))
    report, out = exported(home, "gguf", "q4_k_m")
    assert report["tools"][0]["logprob_gap_mean"] < report["tools"][0]["training_changed"]
    assert [path.name for path in out.glob("*.gguf")] == ["model-q4_k_m.gguf"]


def test_a_file_that_llama_cpp_cannot_load_is_an_error(
    home_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cyllama", reason="pip install cyllama")
    monkeypatch.setattr("gguf.GGUFWriter.add_token_merges", lambda *given: None)
    with pytest.raises(RftkitError, match=r"could not load model-f32\.gguf: .*merges"):
        exported(home_here, "gguf", "f32")


def test_what_llama_cpp_does_not_quantize_is_an_error_with_its_reason(home_here: Path) -> None:
    pytest.importorskip("cyllama", reason="pip install cyllama")
    with pytest.raises(RftkitError, match="no tensor type fallback"):  # rows of 48 numbers
        exported(home_here, "gguf", "q4_k_m")


def test_a_tokenizer_that_changes_texts_is_refused_as_gguf(tmp_path: Path) -> None:
    home = home_with(tmp_path, lambda folder: sentencepiece_base(folder, rule="nmt_nfkc"))
    with pytest.raises(RftkitError, match=r"it changes texts before it splits them \(Precompiled"):
        exported(home, "gguf", "f32")
    report, _ = exported(home, "merged")
    assert report["result"] == "same"


def test_other_architectures_and_tokenizers_are_refused_with_the_way_that_works(
    tmp_path: Path,
) -> None:
    home = home_with(tmp_path, lambda folder: engine_models.write(folder, "Gemma"))
    with pytest.raises(RftkitError, match=r"no GGUF file of mine \(architecture gemma\).*merged"):
        exported(home, "gguf")
    report, _ = exported(home, "merged")
    assert report["result"] == "same"
    with pytest.raises(NotFoundError, match="add --format merged"):
        export(home, "mine", tmp_path, Wanted("peft"))


def test_pre_tokenizers_are_known_by_what_they_do() -> None:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    def form(*steps: Any, merges: bool = True) -> dict[str, Any]:
        vocab, joined = {"a": 0, "b": 1, "ab": 2}, [("a", "b")] if merges else []
        inner = Tokenizer(models.BPE(vocab, joined))
        inner.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
        found: dict[str, Any] = json.loads(inner.to_str())
        return found

    def split(pattern: str) -> Any:
        return pre_tokenizers.Split(Regex(pattern), "isolated")

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    qwen, llama = gguf_tokens.BY_PATTERN
    for steps, merges, name in (
        ([plain], True, "gpt-2"),
        ([pre_tokenizers.Digits(individual_digits=True), plain], True, "smollm"),
        ([split(qwen), bare], True, "qwen2"),
        ([split(llama), bare], True, "llama-bpe"),
        ([bare], False, "gpt-2"),
        ([bare], True, None),
        ([split("x"), bare], True, None),
        ([pre_tokenizers.Whitespace()], True, None),
    ):
        assert gguf_tokens._by_form(form(*steps, merges=merges)) == name


def test_scores_join_in_the_order_of_the_merges() -> None:
    assert gguf_tokens._scores(["a", "b", "ab", "abb"], ["a b", "ab b"]) == [-2, -2, 0, -1]


@pytest.mark.parametrize("template", [CHATML, PLAIN, LLAMA2])
def test_ollama_writes_a_chat_as_the_template_does(template: str) -> None:
    from rftkit.server.engine.tiny import _tokenizer

    tokenizer = _tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.chat_template = template
    form = ollama._form_of(tokenizer)
    assert form is not None
    text = ollama.modelfile("m.gguf", tokenizer, [0], 512)
    assert 'PARAMETER stop "<end>"' in text
    assert "PARAMETER num_ctx 512" in text
    assert "{{ .Content }}" in text
    assert ('SYSTEM """You help."""' in text) == (template == CHATML)


def test_a_template_that_ollama_cannot_have_is_named() -> None:
    from rftkit.server.engine.tiny import _tokenizer

    tokenizer = _tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ loop.index }}:{{ m['content'] }};{% endfor %}"
    )
    assert "cannot be written in Ollama's form" in ollama.modelfile("m.gguf", tokenizer, [0], 512)


def test_a_relative_grader_is_named_and_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFTKIT_JUDGE_BASE_URL", "http://judge.test/v1")
    task = [{"role": "user", "content": "{{item.q}}"}]
    spec = {"type": "relative", "name": "better", "model": "judge-1", "input": task}
    rows = HeldOut([], "no rows", 8, {"grader": validate(spec)})
    assert "compares the answers of a group" in str(grade_both(rows, [], []))


def test_the_interval_of_paired_rewards() -> None:
    assert difference([0.5]) is None
    mean, low, high = difference([0.0, 1.0, 2.0]) or (0, 0, 0)
    assert mean == 1.0
    assert high - mean == pytest.approx(4.3027 / 3**0.5, abs=1e-4)  # t of 2 degrees, deviation 1
    assert mean - low == pytest.approx(high - mean)


# ── the command ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, home_here: Path) -> list[dict[str, Any]]:
    """`rftkit models export` against this home, without a server; what was asked."""
    asked: list[dict[str, Any]] = []

    def fetch(client: Any, model: str, out: Path, **wanted: Any) -> list[str]:
        asked.append(wanted)
        out.mkdir()
        export(home_here, model, out, Wanted(wanted["format"], wanted["quantize"], wanted["rows"]))
        return sorted(path.name for path in out.iterdir())

    monkeypatch.setattr("rftkit.connect", lambda: None)
    monkeypatch.setattr(client_side, "fetch_weights", fetch)
    return asked


def test_the_command_says_what_was_compared(fetched: list[Any], tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["models", "export", NAME, str(tmp_path / "o"), "--format", "merged", "--rows", "2"]
    )
    assert done.exit_code == 0, done.output
    assert "2 of 2 answers the same" in done.output
    assert fetched == [{"format": "merged", "quantize": None, "rows": 2}]


def test_the_command_fails_when_the_folder_is_not_the_model(
    fetched: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_training(monkeypatch)
    done = CliRunner().invoke(
        app,
        ["models", "export", NAME, str(tmp_path / "o"), "--format", "merged", "--push", "me/it"],
    )
    assert isinstance(done.exception, PlatformError)
    assert "is not the model, do not use it" in str(done.exception)
    with pytest.raises(InputError, match="it is not pushed"):
        client_side.push_folder(tmp_path / "o", "me/it")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name one folder"),
        (["a", "--out", "b"], "name one folder"),
        (["a", "--merged", "--format", "gguf"], "--merged is --format merged"),
        (["a", "--quantize", "q8_0"], "--quantize is for --format gguf"),
        (["a", "--push", "it"], "expected OWNER/NAME"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    fetched: list[Any], arguments: list[str], said: str
) -> None:
    done = CliRunner().invoke(app, ["models", "export", NAME, *arguments])
    assert said in str(done.exception)
    assert not fetched


def test_a_push_makes_a_private_repository_and_uploads_the_folder(
    fetched: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    class Hub:
        def create_repo(self, name: str, **options: Any) -> str:
            calls.append((name, options))
            return f"https://hub.example/{name}"

        def upload_folder(self, **options: Any) -> None:
            calls.append(options)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    out = tmp_path / "o"
    command = ["models", "export", NAME, str(out), "--format", "merged", "--push", "me/it"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "pushed to https://hub.example/me/it" in done.output
    assert calls == [
        ("me/it", {"private": True, "exist_ok": True}),
        {"repo_id": "me/it", "folder_path": out, "commit_message": f"rftkit: {NAME}"},
    ]


def test_an_adapter_on_a_base_that_nobody_has_is_not_pushed(
    fetched: list[Any], tmp_path: Path
) -> None:
    done = CliRunner().invoke(
        app, ["models", "export", NAME, str(tmp_path / "o"), "--push", "me/it", "--rows", "0"]
    )
    assert "export the model with --format merged to push it" in str(done.exception)
