"""Embeddings over the wire, `cosine` through them, and the length of a prompt."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest
from conftest import Served

from rftkit.graders.embeddings import LOCAL_EMBEDDING_MODEL

MODEL: Any = "rftkit-tiny"
COSINE: Any = {
    "type": "text_similarity", "name": "near", "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}", "evaluation_metric": "cosine",
}  # fmt: skip


def test_vectors_come_in_the_asked_form(served: Served) -> None:
    create = served.client.embeddings.create
    asked = create(model=MODEL, input=["a", "bcd"])  # the SDK asks for base64 and decodes it
    assert [each.embedding for each in asked.data] == [[1.0, 1.0], [3.0, 1.0]]
    assert [each.index for each in asked.data] == [0, 1]
    assert (asked.usage.prompt_tokens, asked.model) == (3, MODEL)
    assert create(model=MODEL, input="ab", encoding_format="float").data[0].embedding == [2.0, 1.0]
    create(model=MODEL, input=[1, 2])
    assert served.link.requests[-1]["input"] == [[1, 2]]


BAD: Any = [
    ({"input": []}, "input", "one to 2048"),
    ({"input": [""]}, "input", "none of them empty"),
    ({"input": ["x"] * 2049}, "input", "one to 2048"),
    ({"dimensions": 8}, "dimensions", "always has the model's hidden size"),
    ({"encoding_format": "int8"}, "encoding_format", ""),
]


@pytest.mark.parametrize(("changes", "param", "words"), BAD)
def test_what_cannot_be_embedded(served: Served, changes: Any, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.embeddings.create(**{"model": MODEL, "input": "x", **changes})
    assert caught.value.param == param
    assert words in caught.value.message
    with pytest.raises(openai.NotFoundError):
        served.client.embeddings.create(model="text-embedding-3-large", input="x")


def test_cosine_graders_ask_one_model_here(served: Served) -> None:
    run = served.client.fine_tuning.alpha.graders.run(
        grader=COSINE, model_sample="abc", item={"answer": "a"}
    )
    assert run.reward == pytest.approx(4 / math.hypot(3, 1) / math.hypot(1, 1))
    assert served.link.requests[-1]["model"] == LOCAL_EMBEDDING_MODEL
    job = served.create_job(method={"type": "reinforcement", "reinforcement": {"grader": COSINE}})
    assert job.method.reinforcement.grader.evaluation_metric == "cosine"


def test_real_vectors_have_length_one_and_tell_texts_apart(platform: openai.OpenAI) -> None:
    texts = ["copy: abc", "copy: abd", "<<<<<"]
    one, near, far = (
        each.embedding for each in platform.embeddings.create(model=MODEL, input=texts).data
    )
    assert math.hypot(*one) == pytest.approx(1.0, abs=1e-5)

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert cosine(one, near) > cosine(one, far)
    with pytest.raises(openai.BadRequestError, match="tokens"):
        platform.embeddings.create(model=MODEL, input="x" * 600)


def test_input_tokens_are_those_of_the_answer_to_come(platform: openai.OpenAI) -> None:
    counted = platform.responses.input_tokens.count(model=MODEL, input="copy: abc")
    made = platform.responses.create(model=MODEL, input="copy: abc", max_output_tokens=2)
    assert made.usage is not None
    assert counted.input_tokens == made.usage.input_tokens > 8


def test_only_background_responses_could_be_cancelled(served: Served) -> None:
    made = served.client.responses.create(model=MODEL, input="hi")
    with pytest.raises(openai.BadRequestError, match="not a background response"):
        served.client.responses.cancel(made.id)
    with pytest.raises(openai.NotFoundError):
        served.client.responses.cancel("resp_none")
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.responses.compact(model=MODEL, input="hi")
    assert caught.value.code == "unsupported"
