"""Weights on their way out, and models on their way in: the numbers stay the same."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import openai
import pytest
import torch
from in_process import ROWS, add_job, run
from typer.testing import CliRunner

from rftkit.cli.app import app
from rftkit.errors import InputError, NotFoundError, PlatformError
from rftkit.jobs.weights import fetch_weights
from rftkit.server.engine.values import TrainGroup
from rftkit.server.worker.worker import Worker

SAID = "abcdefgh"


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, made_models: Path
) -> Iterator[tuple[Worker, str]]:
    """A worker and the final model of a job."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(made_models, home / "models")
    worker = Worker(home, lambda message: None)
    job = run(worker, add_job(worker, learning_rate_multiplier=30))
    assert job.fine_tuned_model is not None
    yield worker, job.fine_tuned_model
    worker.store.close()


def logprobs_here(worker: Worker, model: str) -> tuple[list[int], list[int], torch.Tensor]:
    """Prompt, answer and the answer's log-probs under the engine."""
    engine = worker.engines.get("rftkit-tiny")
    known = worker.store.model(model)
    assert known is not None
    prompt = engine.encode(ROWS[0]["messages"])
    answer = engine.tokenizer(SAID, add_special_tokens=False)["input_ids"]
    group = TrainGroup(prompt, [answer], [[0.0] * len(answer)], [1.0])
    with torch.no_grad(), engine.policies.using(Path(known.folder)):
        return prompt, answer, engine.logprobs([group])


def logprobs_there(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """The same under transformers alone."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0]
    table = torch.log_softmax(logits.float(), dim=-1)
    at = torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return table[at, torch.tensor(answer)]


def exported(worker: Worker, model: str, out: Path, *, merged: bool) -> Path:
    from rftkit.server.worker.exports.export import Wanted, export

    out.mkdir()
    export(worker.home, model, out, Wanted("merged" if merged else "peft", rows=2))
    return out


def test_peft_says_what_the_platform_says(trained: tuple[Worker, str], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    worker, model = trained
    folder = exported(worker, model, tmp_path / "adapter", merged=False)
    base = exported(worker, "rftkit-tiny", tmp_path / "base", merged=True)
    plain = AutoModelForCausalLM.from_pretrained(base)
    prompt, answer, here = logprobs_here(worker, model)
    before = logprobs_there(plain, prompt, answer)
    there = logprobs_there(PeftModel.from_pretrained(plain, folder), prompt, answer)
    assert float((here - there).abs().max()) < 1e-4
    assert float((before - there).abs().max()) > 1e-3  # it did learn something
    assert AutoTokenizer.from_pretrained(folder)(SAID)["input_ids"][-len(answer) :] == answer


def test_transformers_says_it_too(trained: tuple[Worker, str], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    worker, model = trained
    folder = exported(worker, model, tmp_path / "merged", merged=True)
    prompt, answer, here = logprobs_here(worker, model)
    there = logprobs_there(AutoModelForCausalLM.from_pretrained(folder), prompt, answer)
    assert float((here - there).abs().max()) < 1e-4


def test_the_card_says_where_a_model_comes_from(
    trained: tuple[Worker, str], tmp_path: Path
) -> None:
    worker, model = trained
    card = (exported(worker, model, tmp_path / "out", merged=False) / "README.md").read_text()
    job = worker.store.jobs()[0][0]
    assert card.startswith('---\nlicense: "apache-2.0"\nbase_model: "rftkit-tiny"\n')
    assert worker.store.file(job.training_file).digest in card
    assert "Grader: `exact` (string_check). SHA-256 of its JSON" in card
    assert re.search(r"\| 0 \| – \| \d\.\d{3} \|", card)  # the baseline has no training reward
    assert "Validation reward, step 0 to this model, row by row: " in card
    assert "2 rows (validation rows), greedily" in card
    assert '"full_valid_mean_reward"' in card
    assert '"learning_rate"' in card


def test_what_cannot_be_exported(trained: tuple[Worker, str], tmp_path: Path) -> None:
    worker, _ = trained
    with pytest.raises(NotFoundError, match="--format merged"):
        exported(worker, "rftkit-tiny", tmp_path / "a", merged=False)
    with pytest.raises(NotFoundError, match="does not exist"):
        exported(worker, "ft:none", tmp_path / "b", merged=False)


def test_a_tokenizer_kept_in_vocab_and_merges_is_exported(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from rftkit.server.worker.exports.export import Wanted, export

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = ["<|endoftext|>", *letters, "He", "ll", "Hell", "Hello"]
    base, out = tmp_path / "base", tmp_path / "out"
    config = Qwen2Config(
        vocab_size=len(vocab), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(base)
    (base / "vocab.json").write_text(json.dumps({token: at for at, token in enumerate(vocab)}))
    (base / "merges.txt").write_text("#version: 0.2\nH e\nl l\nHe ll\nHell o\n")
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (base / "chat_template.jinja").write_text(template)
    home = tmp_path / "home"
    home.mkdir()
    (home / "bases.json").write_text(json.dumps({"mine": str(base)}))
    out.mkdir()
    export(home, "mine", out, Wanted("merged"))
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert len(tokenizer) >= len(vocab)
    assert tokenizer("Hello")["input_ids"] == [len(vocab) - 1]
    assert tokenizer.decode(tokenizer("Hello, wörld")["input_ids"]) == "Hello, wörld"
    assert tokenizer.chat_template == template


def home_of(platform: openai.OpenAI) -> str:
    with urlopen(str(platform.base_url).replace("/v1/", "/health")) as response:
        home: str = json.load(response)["home"]
    return home


def test_the_command_line_fetches_weights_and_adds_models(
    platform: openai.OpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RFTKIT_HOME", home_of(platform))
    invoke = CliRunner().invoke
    out = tmp_path / "base"
    made = invoke(app, ["models", "export", "rftkit-tiny", "--format", "merged", "--out", str(out)])
    assert made.exit_code == 0, made.output
    assert {"config.json", "README.md", "tokenizer.json"} <= {path.name for path in out.iterdir()}
    assert list((Path(home_of(platform)) / "exports").iterdir()) == []
    with pytest.raises(InputError, match="not an empty folder"):
        fetch_weights(platform, "rftkit-tiny", out, format="merged")
    with pytest.raises(PlatformError, match="add --format merged"):
        fetch_weights(platform, "rftkit-tiny", tmp_path / "other")
    with pytest.raises(NotFoundError, match="'ft:none' does not exist"):
        fetch_weights(platform, "ft:none", tmp_path / "other")
    for quantize in ("q9", "--rows"):
        with pytest.raises(PlatformError, match=f"no quantization '{quantize}'; there are f32"):
            fetch_weights(
                platform, "rftkit-tiny", tmp_path / "other", format="gguf", quantize=quantize
            )
    gguf = tmp_path / "gguf"  # llama.cpp writes such names in capitals
    fetch_weights(platform, "rftkit-tiny", gguf, format="gguf", quantize="Q8_0", rows=0)
    assert (gguf / "model-q8_0.gguf").is_file()

    user: Any = [{"role": "user", "content": "copy: abc"}]
    with pytest.raises(openai.NotFoundError):  # a folder, but not a name
        platform.chat.completions.create(model=str(out), messages=user)
    added = invoke(app, ["models", "add", str(out), "--name", "mine"])
    assert added.exit_code == 0, added.output
    assert "mine" in [model.id for model in platform.models.list()]
    answer = platform.chat.completions.create(model="mine", messages=user, max_completion_tokens=4)
    assert answer.choices
    assert invoke(app, ["models", "remove", "mine"]).exit_code == 0
    with pytest.raises(openai.NotFoundError):
        platform.models.retrieve("mine")
    for arguments in (["add", str(tmp_path)], ["add", "a/b"], ["remove", "mine"]):
        assert isinstance(invoke(app, ["models", *arguments]).exception, InputError)


def test_one_export_at_a_time_and_none_outlives_its_client(
    platform: openai.OpenAI, tmp_path: Path
) -> None:
    exports = Path(home_of(platform)) / "exports"
    url = str(platform.base_url).replace("/v1/", "/rftkit/models/rftkit-tiny/weights?merged=true")
    with pytest.raises(HTTPError, match="405"):
        urlopen(url)  # what a picture on a web page does
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as first:
        head = f"POST {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        first.sendall(f"{head}Content-Length: 2\r\n\r\n{{}}".encode())
        while not (exports.is_dir() and list(exports.iterdir())):
            time.sleep(0.02)
        with pytest.raises(PlatformError, match="another export is running"):
            fetch_weights(platform, "rftkit-tiny", tmp_path / "second", format="merged")
    deadline = time.monotonic() + 20
    while list(exports.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    fetch_weights(platform, "rftkit-tiny", tmp_path / "third", merged=True)
