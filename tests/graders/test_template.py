"""Templates: what they name, what they render, how they say what is missing."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rftkit.errors import GraderSpecError, RowError
from rftkit.graders import Sample, check_item_paths, variables
from rftkit.graders.outcome import Fault
from rftkit.graders.template import compile_template, lone_path, paths

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
SAMPLE = Sample.from_text(
    '{"label": "yes", "n": [1, 2]}',
    tool_calls=[{"type": "function", "function": {"name": "f", "arguments": "{}"}}],
    model="m-1",
)
ITEM = {"a": {"b": [{"c": "deep"}]}, "list": [1, "x"], "null": None, "key with space": 3, "f": 1.5}


def render(text: str, sample: Sample = SAMPLE, item: object = ITEM) -> str:
    return compile_template(text)(sample, item)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("", ""),
        ("{{item.a.b[0].c}}", "deep"),
        ("{{ item.a.b[0].c }}", "deep"),
        ("<{{item.list[1]}}|{{ sample.output_json.label }}>", "<x|yes>"),
        ("{{item.list}}", '[1, "x"]'),
        ("{{item.null}}", "null"),
        ("{{item.f}}", "1.5"),
        ("{{item['key with space']}}", "3"),
        ("{{sample.output_json.n[1]}}", "2"),
        ("{{sample.output_text}}", SAMPLE.output_text),
        ("{{sample.output_tools[0].function.name}}", "f"),
        ("{{sample.choices[0].message.tool_calls[0].function.arguments}}", "{}"),
        ("{{sample.choices[0].finish_reason}}", "tool_calls"),
        ("{{item}}", json.dumps(ITEM)),
        ("an open {{ stays", "an open {{ stays"),
        ('write {{ "{{" }}item.x}} so', "write {{item.x}} so"),
        ("{{'{{'}}{{ item.f }}{{ '}}' }}", "{{1.5}}"),
        ('{{ "{{ item.f }}" }}', "{{ item.f }}"),
        ('{{ "{{" }}', "{{"),
        ("{{sample.model}}: {{sample['model']}}", "m-1: m-1"),
        ('{"json": {"in": "prompts"}}', '{"json": {"in": "prompts"}}'),
    ],
)
def test_render(text: str, expected: str) -> None:
    assert render(text) == expected


def test_a_row_may_have_keys_named_like_those_of_the_sample() -> None:
    item = {"output_text": "row", "output_json": {"label": "row"}}
    assert render("{{item.output_text}} {{item.output_json.label}}", item=item) == "row row"
    assert render("{{sample.output_json.label}}", item=item) == "yes"


def test_what_is_substituted_is_not_rendered_again() -> None:
    assert render("{{item.x}}", item={"x": "{{sample.output_text}}"}) == "{{sample.output_text}}"


@pytest.mark.parametrize(
    ("text", "message", "outcome"),
    [
        ("{{item.z}}", "`item.z` is missing: `item` has the keys: a, list", "failed"),
        ("{{item.a.z}}", "`item.a.z` is missing: `item.a` has the keys: b", "failed"),
        ("{{item.a.b[3]}}", "`item.a.b[3]` is missing: `item.a.b` has 1 element", "failed"),
        ("{{item.list.x}}", "`item.list` is a list, not an object", "failed"),
        ("{{item.null.x}}", "`item.null` is null, not an object", "failed"),
        ("{{item.f[0]}}", "`item.f` is a number, not a list", "failed"),
        ("{{item.a.b[0].c[0]}}", "`item.a.b[0].c` is text, not a list", "failed"),
        ("{{sample.output_json.z}}", "`sample.output_json` has the keys: label, n", "unscorable"),
        ("{{sample.output_tools[1]}}", "`sample.output_tools` has 1 element", "unscorable"),
    ],
)
def test_missing(text: str, message: str, outcome: str) -> None:
    with pytest.raises(Fault) as caught:
        render(text)
    assert caught.value.flag == "invalid_variable_error"
    assert message in caught.value.details
    assert caught.value.outcome == outcome


def test_an_answer_that_is_not_json_is_the_samples_fault() -> None:
    with pytest.raises(Fault) as caught:
        render("{{sample.output_json.label}}", Sample.from_text("yes"))
    assert (caught.value.flag, caught.value.outcome) == ("sample_parse_error", "unscorable")


@pytest.mark.parametrize(
    "text",
    ["{{}}", "{{ 1 + 1 }}", "{{item.}}", "{{item.a b}}", "{{foo.x}}", "{{item[-1]}}", "{{itemx}}",
     "{{sample.text}}", "{{ sample.output_audio }}", "{{item|upper}}"],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(GraderSpecError):
        compile_template(text)


def test_paths_and_lone_path() -> None:
    assert [str(path) for path in paths("{{item.a}} {{ sample.output_json.b[0]['c d'] }}")] == [
        "item.a",
        "sample.output_json.b[0]['c d']",
    ]
    assert str(lone_path(" {{item.a}} ")) == "item.a"
    assert lone_path("x {{item.a}}") is None
    assert lone_path("{{item.a}}{{item.b}}") is None


def test_variables_and_rows() -> None:
    spec = {
        "type": "multi",
        "graders": {
            "judge": {
                "type": "score_model",
                "model": "m",
                "input": [
                    {"role": "user", "content": "{{item.why}}"},
                    {
                        "role": "user",
                        "content": [{"type": "input_text", "text": "{{sample.output_text}}"}],
                    },
                ],
            },
            "label": {
                "type": "string_check",
                "operation": "eq",
                "input": "{{item.a.b}}",
                "reference": "{{item.why}}",
            },
        },
        "calculate_output": "judge + label",
    }
    assert variables(spec) == ["item.why", "sample.output_text", "item.a.b"]
    check_item_paths(spec, {"why": "", "a": {"b": None}})
    with pytest.raises(RowError, match=r"needs `item\.a\.b` is missing: `item\.a` has the keys: c"):
        check_item_paths(spec, {"why": "", "a": {"c": 1}})


@given(key=st.text(min_size=1).filter(lambda key: not set(key) & set("'\"")), value=JSON)
def test_any_key_and_value(key: str, value: object) -> None:
    text = f"{{{{item['{key}']}}}}"
    try:
        compiled = compile_template(text)
    except GraderSpecError:
        assert "}}" in key or "]" in key or "\n" in key
        return
    expected = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    assert "}}" in text[:-2] or compiled(SAMPLE, {key: value}) == expected


@given(text=st.text(), item=JSON)
def test_any_text_renders_or_is_refused(text: str, item: object) -> None:
    for candidate in (text, "{{" + text + "}}", "{{item." + text + "}}"):
        with contextlib.suppress(GraderSpecError, Fault):
            assert isinstance(compile_template(candidate)(SAMPLE, item), str)
