"""The Tinker engine against a server that speaks the protocol: the fake one here, or a real one.

`RFTKIT_TEST_TINKER=URL,MODEL,FOLDER pytest tests/server/engine/test_tinker.py -k contract` runs
the same contract against a real server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import hypothesis  # noqa: F401  (its plugin imports it at the end, beside the client's threads)
import openai
import pytest
from tinker_server import BASE, Model, Pretence, running

import rftkit
import rftkit.client
from rftkit.errors import EngineLostError, InputError, PlatformError, RequestError
from rftkit.server.engine.tinker import remote
from rftkit.server.engine.tinker.engine import TinkerEngine
from rftkit.server.engine.tinker.exchange import Member, stats_of
from rftkit.server.engine.tinker.remote import Remote
from rftkit.server.engine.values import (
    Completion,
    LoraConfig,
    SampleRequest,
    Text,
    TrainGroup,
    TrainSettings,
)

MESSAGES = [{"role": "user", "content": "say hi"}]


@pytest.fixture(scope="module")
def there(made_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    """The server of the contract."""
    if real := os.environ.get("RFTKIT_TEST_TINKER"):
        yield Remote(*real.split(","))
        return
    folder, state = next(made_models.glob("rftkit-tiny*")), tmp_path_factory.mktemp("cluster")
    with running(Model(folder, state), state) as (url, _):
        yield Remote(url, BASE, str(folder))


@pytest.fixture(scope="module")
def engine(there: Remote) -> Iterator[TinkerEngine]:
    """One client of it."""
    engine = TinkerEngine(there, name=there.name)
    yield engine
    engine.close()


def requests(engine: TinkerEngine, num: int = 3, group: int = 4) -> list[SampleRequest]:
    prompt = engine.encode(MESSAGES)
    return [SampleRequest(prompt, [(7, i, g) for g in range(group)], 12) for i in range(num)]


def answered(engine: TinkerEngine) -> list[Text]:
    """Two conversations, the answers of one weighing nothing once."""
    said = [*MESSAGES, {"role": "assistant", "content": "hi"}]
    return [
        *engine.conversation(said, [1]),
        *engine.conversation([*said, *MESSAGES, {"role": "assistant", "content": "hello"}], [3]),
    ]


def test_contract_answers_are_imitated(engine: TinkerEngine) -> None:
    engine.start_policy(LoraConfig(), seed=3)
    texts = answered(engine)
    before = engine.imitate(texts, None)
    assert before.num_tokens == sum(sum(text.trained) for text in texts)
    assert before.grad_norm is None
    assert engine.imitate(texts, None).loss == pytest.approx(before.loss, abs=1e-4)
    stats = [engine.imitate(texts, TrainSettings(1e-2)) for _ in range(5)]
    assert stats[0].loss == pytest.approx(before.loss, abs=1e-4)
    assert stats[-1].loss < before.loss - 0.1
    assert before.accuracy is None  # the protocol gives no most likely tokens


def test_answers_have_the_loss_that_they_have_here(engine: TinkerEngine, there: Remote) -> None:
    from rftkit.server.engine.torch.engine import TorchEngine

    engine.start_policy(LoraConfig(), seed=3)
    here = TorchEngine(Path(there.tokenizer), name="here")
    here.start_policy(LoraConfig(), seed=3)
    texts = answered(engine)
    assert engine.imitate(texts, None).loss == pytest.approx(
        here.imitate(texts, None).loss, abs=1e-3
    )


def groups(engine: TinkerEngine) -> list[TrainGroup]:
    """Sampled by the policy; the first two of each group are good, the others bad."""
    asked = requests(engine)
    return [
        TrainGroup(
            each.prompt_ids,
            [c.tokens for c in said],
            [c.sampling_logprobs for c in said],
            [1.0, 1.0, -1.0, -1.0],
        )
        for each, said in zip(asked, engine.sample(asked), strict=True)
    ]


def test_contract_completions_come_in_order_with_a_log_prob_a_token(engine: TinkerEngine) -> None:
    engine.start_policy(LoraConfig(), seed=1)
    seen: set[int] = set()
    told: dict[tuple[int, int], Completion] = {}
    answers = engine.sample(
        requests(engine),
        on_text=lambda i, index, text: seen.add(i),
        on_completion=lambda i, index, completion: told.update({(i, index): completion}),
    )
    assert [len(group) for group in answers] == [4, 4, 4]
    assert [[told[i, index] for index in range(4)] for i in range(3)] == answers
    assert sorted(seen) == [0, 1, 2]
    for completion in (each for group in answers for each in group):
        assert 0 < len(completion.tokens) <= 12
        assert len(completion.sampling_logprobs) == len(completion.tokens)
        assert all(value <= 1e-6 for value in completion.sampling_logprobs)
        ended = completion.tokens[-1] in engine.eos_ids
        assert completion.stop_reason == ("stop" if ended else "length")


def test_contract_the_base_model_answers_the_same_when_asked_for_the_likeliest(
    engine: TinkerEngine,
) -> None:
    greedy = [dataclasses.replace(each, temperature=0.0) for each in requests(engine, 2, 1)]
    first, second = engine.sample(greedy, None)
    assert first[0].tokens == second[0].tokens


def test_contract_an_update_makes_good_completions_likelier(engine: TinkerEngine) -> None:
    engine.start_policy(LoraConfig(), seed=1)
    batch = groups(engine)
    first = engine.train_step(batch, TrainSettings(1e-3))
    assert first.logprob_gap_mean < 0.1  # sampler and trainer agree on what was sampled
    assert first.num_tokens == sum(len(t) for g in batch for t in g.tokens_G_T)
    assert first.clip_fraction == 0.0
    second = engine.train_step(batch, TrainSettings(1e-3))
    assert second.loss < first.loss


def test_contract_a_saved_policy_goes_on_and_can_be_asked(
    engine: TinkerEngine, tmp_path: Path
) -> None:
    engine.start_policy(LoraConfig(), seed=1)
    batch = groups(engine)
    engine.train_step(batch, TrainSettings(1e-3))
    state, adapter = tmp_path / "state", tmp_path / "adapter"
    state.mkdir()
    adapter.mkdir()
    engine.save(state)
    engine.save_adapter(adapter)
    straight = engine.train_step(batch, TrainSettings(1e-3))
    engine.load(state)
    resumed = engine.train_step(batch, TrainSettings(1e-3))
    assert resumed.loss == pytest.approx(straight.loss, abs=1e-3)
    assert resumed.logprob_gap_mean == pytest.approx(straight.logprob_gap_mean, abs=1e-3)
    greedy = [dataclasses.replace(each, temperature=0.0) for each in requests(engine, 1, 1)]
    assert engine.sample(greedy, adapter)[0][0].tokens
    assert remote.kind_of_folder(state) == "tinker"


def test_contract_asking_a_saved_policy_leaves_the_one_in_training_alone(
    engine: TinkerEngine, tmp_path: Path
) -> None:
    def likeliest(adapter: Path | Literal["policy"]) -> list[int]:
        [request] = requests(engine, 1, 1)
        [[answer]] = engine.sample([dataclasses.replace(request, temperature=0.0)], adapter)
        return answer.tokens

    engine.start_policy(LoraConfig(), seed=1)
    batch = groups(engine)
    early, late = tmp_path / "early", tmp_path / "late"
    for folder in (early, late):
        folder.mkdir()
        engine.train_step(batch, TrainSettings(1e-2))
        engine.save_adapter(folder)
    said, asked = likeliest("policy"), likeliest(early)
    assert likeliest("policy") == likeliest(late) == said
    assert likeliest(early) == asked
    engine.drop_policy()
    assert likeliest(early) == asked


def test_contract_a_policy_that_is_dropped_frees_its_place(engine: TinkerEngine) -> None:
    for seed in range(5):
        engine.start_policy(LoraConfig(rank=4), seed=seed)


def test_a_closed_engine_sends_no_more_signs_of_life(there: Remote, tmp_path: Path) -> None:
    with running(Pretence(tmp_path, 0.0, 4, 8), tmp_path) as (url, app):
        engine = TinkerEngine(Remote(url, BASE, there.tokenizer), name=BASE)
        engine.start_policy(LoraConfig(), seed=1)
        engine.sample(requests(engine, 1, 1), None)
        holders = [engine._current().training.holder, engine._service.holder]
        engine.close()
        assert app.state.calls["unload_model"] == 1
        deadline = time.monotonic() + 30
        while not all(each._session_heartbeat_task.done() for each in holders):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_contract_an_archive_makes_a_checkpoint_that_the_embedded_engine_serves(
    engine: TinkerEngine, there: Remote, tmp_path: Path
) -> None:
    from rftkit.server.engine.torch.engine import TorchEngine

    engine.start_policy(LoraConfig(), seed=1)
    engine.train_step(groups(engine), TrainSettings(1e-2))
    folder = tmp_path / "adapter"
    folder.mkdir()
    engine.save_adapter(folder)
    assert remote.kind_of_folder(folder) is None  # here and there
    local = TorchEngine(Path(there.tokenizer), name=BASE)
    greedy = [dataclasses.replace(each, temperature=0.0) for each in requests(engine, 1, 1)]
    here_said, there_said = local.sample(greedy, folder), engine.sample(greedy, folder)
    assert here_said[0][0].tokens == there_said[0][0].tokens


def test_a_server_of_other_clients_is_refused_with_what_to_install(
    there: Remote, tmp_path: Path
) -> None:
    import tinker

    version = tuple(map(int, tinker.__version__.split(".")[:2]))
    with running(Pretence(tmp_path, 0.0, 4, 8), tmp_path) as (url, app):
        engine = TinkerEngine(Remote(url, BASE, there.tokenizer), name=BASE)
        engine.start_policy(LoraConfig(), seed=1)
        batch = groups(engine)
        app.state.encodings = {"protobuf"} if version < (0, 25) else {"json"}
        wanted = r"rftkit\[tinker\]" if version < (0, 25) else r"rftkit\[skyrl-0-3\]"
        with pytest.raises(InputError, match=wanted):
            engine.train_step(batch, TrainSettings(1e-3))
        app.state.encodings, app.state.numbers_samples = {"json", "protobuf"}, False
        if version >= (0, 26):
            with pytest.raises(InputError, match=r"rftkit\[skyrl\]"):
                engine.sample(requests(engine))
        else:
            assert engine.sample(requests(engine))
        engine.close()


def test_stop_texts_and_thoughts_are_cut_here(engine: TinkerEngine) -> None:
    [plain] = engine.sample(requests(engine, 1, 1), None)
    text = plain[0].text
    middle = text[len(text) // 2]
    [request] = requests(engine, 1, 1)
    [cut] = engine.sample([dataclasses.replace(request, stop=(middle,))], None)
    assert cut[0].text == text.partition(middle)[0]
    assert cut[0].stop_reason == "stop"
    assert len(cut[0].tokens) == len(cut[0].sampling_logprobs) <= len(plain[0].tokens)


def test_what_the_protocol_lacks_is_refused_by_name() -> None:
    wanted = {"kl_coef": "0.1", "lora_alpha": "16", "loss": "reinforce", "tuning": "full"}
    for name, value in wanted.items():
        with pytest.raises(RequestError, match=f"`{name}`.*Tinker") as refusal:
            remote.refuse({name: value})
        assert refusal.value.param == f"metadata.{name}"
    remote.refuse({"kl_coef": "0", "lora_alpha": "32", "loss": "clipped", "topic": "x"})


def test_a_weight_from_this_machine_cannot_be_taken_there(
    engine: TinkerEngine, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="takes none from outside"):
        engine.start_policy(LoraConfig(), seed=1, adapter=tmp_path)


def test_a_log_prob_that_is_no_number_is_an_error() -> None:
    member = Member([1, 2], [3, 4], [-0.5, -0.5], [1.0, 1.0])
    with pytest.raises(FloatingPointError, match="not finite"):
        stats_of([member], [[-0.5, math.nan]], TrainSettings(1e-3), {})


def test_clipping_is_counted_where_the_loss_cuts() -> None:
    members = [Member([1], [3], [0.0], [1.0]), Member([1], [3], [0.0], [-1.0])]
    stats = stats_of(members, [[math.log(1.5)], [math.log(1.5)]], TrainSettings(1e-3), {})
    assert stats.clip_fraction == 0.5  # a bad token that grew likelier is not let off
    assert stats.loss == pytest.approx((-1.2 + 1.5) / 2)


def test_a_server_with_another_model_is_named_with_what_it_has(there: Remote) -> None:
    with pytest.raises(EngineLostError, match=BASE):
        TinkerEngine(dataclasses.replace(there, model="other"), name="other")


def test_a_tokenizer_that_is_not_here_is_asked_for(there: Remote) -> None:
    with pytest.raises(InputError, match="--tinker-tokenizer"):
        TinkerEngine(dataclasses.replace(there, tokenizer="/nowhere"), name=BASE)


def test_which_engine_a_model_runs_on(tmp_path: Path) -> None:
    assert remote.kind_of("m", tmp_path, None) == "torch"
    with pytest.raises(RequestError, match="rftkit serve --engine tinker"):
        remote.kind_of("m", tmp_path, "tinker")
    remote.keep_remote(tmp_path, Remote("http://x", "/models/m", "/models/m"))
    assert remote.kind_of("m", tmp_path, None) == "tinker"
    assert remote.kind_of("m", tmp_path, "torch") == "torch"
    assert remote.kind_of("other", tmp_path, None) == "torch"
    remote.forget_remote(tmp_path)
    assert remote.kind_of("m", tmp_path, None) == "torch"
    assert remote.kind_of("m", tmp_path, "tinker") == "tinker"
    (tmp_path / "tinker.json").write_text("{")
    with pytest.raises(PlatformError, match=r"tinker\.json cannot be read"):
        remote.remote_of(tmp_path)


@contextlib.contextmanager
def cluster(folder: Path, state: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server that can be killed."""
    command = [sys.executable, str(Path(__file__).parents[2] / "tinker_server.py")]
    command += ["--folder", str(folder), "--state", str(state), "--port", str(port)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/healthz", timeout=5).close()
            break
        time.sleep(0.1)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def elsewhere(made_models: Path, home: Path, tmp_path: Path) -> tuple[Path, Path, int]:
    """A home whose jobs train on a server that does not run yet: folder, state and port of it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = next(made_models.glob("rftkit-tiny*"))
    remote.keep_remote(home, Remote(f"http://127.0.0.1:{port}", BASE, str(folder)))
    return folder, tmp_path / "state", port


@pytest.fixture
def client(home: Path) -> Iterator[openai.OpenAI]:
    """The official client of the platform of that home."""
    client = rftkit.connect()
    with client:
        yield client
    rftkit.client.stop_server(home)


def create(client: openai.OpenAI, **metadata: str) -> Any:
    """A small job; its schema is one that the server does not enforce."""
    letters = "abcdefgh"
    rows = [
        {"messages": [{"role": "user", "content": f"copy {c}"}], "answer": c * 3} for c in letters
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = client.files.create(file=("rows.jsonl", lines), purpose="fine-tune").id
    grader = {
        "type": "text_similarity", "name": "near", "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}", "evaluation_metric": "fuzzy_match",
    }  # fmt: skip
    knobs = {"batch_size": 4, "n_epochs": 3, "compute_multiplier": 0.5, "eval_interval": 2}
    method = {
        "type": "reinforcement",
        "reinforcement": {"grader": grader, "hyperparameters": knobs},
    }
    return client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file,
        validation_file=file,
        seed=3,
        metadata={"max_completion_tokens": "8", **metadata},
        method=method,  # type: ignore[arg-type]
    )


def test_a_job_trains_on_the_server_past_its_death(
    elsewhere: tuple[Path, Path, int], client: openai.OpenAI
) -> None:
    with cluster(*elsewhere) as server:
        assert BASE in {model.id for model in client.models.list()}
        job = create(client)
        while not rftkit.jobs.checkpoints(client, job.id):
            assert client.fine_tuning.jobs.retrieve(job.id).status not in ("failed", "cancelled")
            time.sleep(0.05)
        server.kill()
    with cluster(*elsewhere):
        job = rftkit.jobs.wait(client, job.id)
        assert job.status == "succeeded"
        said = [event["message"] for event in rftkit.jobs.events(client, job.id)]
        assert any("tries again" in message for message in said)
        assert any("as far as the server keeps to it" in message for message in said)
        frame = rftkit.jobs.step_frame(rftkit.jobs.events(client, job.id))
        assert list(frame.index) == list(range(7))
        names = [each.model for each in rftkit.jobs.checkpoints(client, job.id)]
        for name in [BASE, *names]:
            answer = client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": "copy a"}], max_tokens=8
            )
            assert answer.choices[0].finish_reason in ("stop", "length")


def test_a_supervised_job_trains_on_the_server(
    elsewhere: tuple[Path, Path, int], client: openai.OpenAI
) -> None:
    lines = "".join(
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"copy {letter}"},
                    {"role": "assistant", "content": letter * 3},
                ]
            }
        )
        + "\n"
        for letter in "abcdefgh"
    )
    with cluster(*elsewhere):
        file = client.files.create(file=("rows.jsonl", lines.encode()), purpose="fine-tune").id
        job = rftkit.jobs.create(
            client,
            model=BASE,
            method="supervised",
            training_file=file,
            validation_file=file,
            hyperparameters={"batch_size": 4, "n_epochs": 4, "learning_rate_multiplier": 20},
            seed=3,
        )
        job = rftkit.jobs.wait(client, job.id)
        assert job.status == "succeeded", job.error
        frame = rftkit.jobs.step_frame(rftkit.jobs.events(client, job.id))
        losses = frame.set_index("step")["full_valid_loss"].dropna()
        assert list(losses.index) == [2, 4, 6, 8]
        assert losses.iloc[-1] < losses.iloc[0]
        assert job.trained_tokens
        steps = [each.step for each in rftkit.jobs.checkpoints(client, job.id)]
        assert sorted(steps) == [4, 6, 8]
        answer = client.chat.completions.create(
            model=str(job.fine_tuned_model),
            messages=[{"role": "user", "content": "copy a"}],
            max_tokens=8,
        )
        assert answer.choices[0].finish_reason in ("stop", "length")


def test_what_the_server_cannot_do_is_refused_before_the_job_is(
    elsewhere: tuple[Path, Path, int], client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError, match="Tinker") as refusal:
        create(client, kl_coef="0.1")
    assert refusal.value.param == "metadata.kl_coef"
    with pytest.raises(openai.BadRequestError, match="torch, tinker"):
        create(client, engine="gpu")
    assert not client.fine_tuning.jobs.list().data
