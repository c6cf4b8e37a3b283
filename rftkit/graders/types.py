"""Grader specs, one model per wire type; the checks that have words of their own are in `parse`.

Specs are passed around as plain dicts in the wire's form; these models only define the fields
and their meaning. Unknown fields are refused, because a mistyped option would otherwise be
ignored silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

__all__ = [
    "MAX_GRADERS",
    "SPECS",
    "Criterion",
    "Endpoint",
    "LabelModel",
    "Message",
    "Multi",
    "Named",
    "Purpose",
    "Python",
    "Relative",
    "Rubric",
    "ScoreModel",
    "StringCheck",
    "TextSimilarity",
    "asks_judge",
    "calls_out",
    "compares_group",
    "lowest",
    "parts",
    "pass_threshold",
    "spec_type",
]

MAX_GRADERS = 32
"""Most graders in one multi grader."""

Purpose = Literal["rft", "eval"]
"""`rft` covers jobs and graders/run; `eval` the criteria of an eval."""


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Named(_Spec):
    """The fields of every grader, and the facts of its type.

    A new type is a class here, its line in `SPECS`, and the function in `leaves` that compiles it.
    """

    calls_out: ClassVar[bool] = False
    """Whether grading calls a model or an address outside this process."""
    asks_judge: ClassVar[bool] = False
    """Whether a model grades."""
    is_hosted: ClassVar[bool] = True
    """Whether OpenAI's services know the type; others are additions of rftkit."""
    is_yes_or_no: ClassVar[bool] = False
    """Whether a score is either 0 or 1."""
    templates: ClassVar[tuple[str, ...]] = ()
    """The fields that hold templates, or messages of templates."""
    compares: ClassVar[bool] = False
    """Whether it compares a template `input` with a template `reference`."""
    compares_group: ClassVar[bool] = False
    """Whether it compares the answers of a group, so that its rewards are relative to them."""
    works_in_jobs: ClassVar[bool] = True
    """Whether a job may be graded with it; evals take every type."""
    gets: ClassVar[str] = ""
    """What it gets in addition to its templates, in words; empty for nothing."""
    pays: ClassVar[str] = "is that of a grader of type `{type}`"
    """What its reward is: words that follow "The reward", with names of fields in braces."""
    error_flags: ClassVar[tuple[str, ...]] = ()
    """Error flags that only this type reports, in addition to those of every grader."""

    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Shown in results; filled in when missing."""
    pass_threshold: float | None = None
    """Score from which an eval counts an answer as passed; it never changes a reward."""


class StringCheck(Named):
    """1 or 0 by comparing two templates; nothing is trimmed."""

    is_yes_or_no = True
    compares = True
    templates = ("input", "reference")
    pays = "is 1 if {input} {operation} {reference}, else 0"

    type: Literal["string_check"]
    operation: Literal["eq", "ne", "like", "ilike"]
    """`like`: input contains reference; `ilike`: the same, ignoring case."""
    input: str
    """Template."""
    reference: str
    """Template."""


class TextSimilarity(Named):
    """How similar two templates are, 0 to 1."""

    compares = True
    templates = ("input", "reference")
    pays = "is the similarity ({evaluation_metric}) of {input} and {reference}"

    type: Literal["text_similarity"]
    evaluation_metric: Literal[
        "cosine",
        "fuzzy_match",
        "bleu",
        "gleu",
        "meteor",
        "rouge_1",
        "rouge_2",
        "rouge_3",
        "rouge_4",
        "rouge_5",
        "rouge_l",
    ]
    """See `similarity`; `cosine` asks for embeddings (hosted services take it in evals only)."""
    input: str
    """Template; the candidate of metrics that are not symmetric."""
    reference: str
    """Template."""


class Python(Named):
    """A function `grade(sample, item)` run in the sandbox."""

    error_flags = ("python_grader_server_error", "python_grader_runtime_error")
    gets = "the whole sample and the whole row, as Python objects"
    pays = "is what a Python function returns"

    type: Literal["python"]
    source: str
    """Python source, under 256 kB."""
    image_tag: str | None = None
    """Name of the hosted image; echoed, without effect here."""
    isolation: Literal["shared", "per_grade"] | None = None
    """`per_grade` runs each grade in a new process, so that code in one answer cannot change the
    grades of others; `shared` lets grades share processes. Unset: `per_grade` when the source may
    execute answers (exec, eval, compile, subprocess, …). A new process costs about 10 ms and
    whatever the source imports. An addition of rftkit: hosted services refuse this field."""


class InputText(_Spec):
    """Text of a message."""

    type: Literal["input_text", "output_text"]
    text: str


class InputImage(_Spec):
    """An image for judges that see."""

    type: Literal["input_image"]
    image_url: str
    detail: str | None = None
    file_id: None = None


class InputAudio(_Spec):
    """Audio for judges that take audio: `{data, format}`."""

    type: Literal["input_audio"]
    input_audio: dict[str, str]


Part = Annotated[InputText | InputImage | InputAudio, Field(discriminator="type")]


class Message(_Spec):
    """One message of a judge's prompt; its texts are templates."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | Part | list[str | Part]
    type: Literal["message"] | None = None


class SamplingParams(_Spec):
    """How a judge samples; unset ones are the judge's own defaults."""

    seed: int | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens; the wire spells it with this plural."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )


class _Judge(Named):
    calls_out = True
    asks_judge = True
    templates: ClassVar[tuple[str, ...]] = ("input",)
    pays: ClassVar[str] = "is the grade of the model `{model}`"

    model: Annotated[str, Field(min_length=1)]
    """The judge."""
    input: Annotated[list[Message], Field(min_length=1)]
    """Its prompt."""
    sampling_params: SamplingParams | None = None


class ScoreModel(_Judge):
    """A model gives a number, clipped into `range`."""

    error_flags = ("model_grader_server_error",)

    type: Literal["score_model"]
    range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """[low, high], default [0, 1]."""


class LabelModel(_Judge):
    """A model picks a label; 1 when it is among the passing ones. Evals only."""

    is_yes_or_no = True
    works_in_jobs = False

    type: Literal["label_model"]
    labels: Annotated[list[str], Field(min_length=1)]
    passing_labels: list[str]


MOST_WEIGHT = 1e6
"""The largest weight of a criterion, so that sums of weights stay finite."""


class Criterion(_Spec):
    """One line of a rubric, in the grader or in a row."""

    text: Annotated[str, Field(min_length=1)]
    """What the answer must do, as one statement that is met or not."""
    weight: Annotated[float, Field(ge=-MOST_WEIGHT, le=MOST_WEIGHT)] = 1.0
    """Its part of the reward; negative for a mistake that lowers it. Not 0, and at most 1,000,000
    in size."""
    required: bool = False
    """Required: without it the reward is 0. Else it is a bonus that adds its weight."""
    check: Literal["correctness", "presence"] = "correctness"
    """`correctness`: said and right; `presence`: said at all, right or not."""


class Rubric(_Judge):
    """A model says which criteria an answer meets; the reward is the share of their weight, 0 to 1.

    An addition of rftkit; `hosted` writes it as graders that hosted services know.
    """

    error_flags = ("model_grader_server_error",)
    is_hosted = False
    templates = ("criteria", "input")
    pays = "is the share of a rubric that the model `{model}` finds met"

    type: Literal["rubric"]
    criteria: JsonValue
    """A list of `Criterion`, or a template such as {{item.rubric}} where each row has its own."""
    input: Annotated[list[Message], Field(min_length=1)] = [
        Message(
            role="user",
            content="Task, as JSON messages:\n{{item.messages}}\n\n"
            "Answer:\n<answer>\n{{sample.output_text}}\n</answer>",
        )
    ]
    """What the judge sees before the criteria."""


class Relative(_Judge):
    """A model compares the answers of a group side by side and scores each from 0 to 1.

    It is asked twice, the second time in the opposite order. The scores mean something within their
    group only. An addition of rftkit.
    """

    error_flags = ("model_grader_server_error",)
    is_hosted = False
    compares_group = True
    templates = ("input", "anchor")
    gets = "all answers of the group"
    pays = "is a score within its group, by the model `{model}`"

    type: Literal["relative"]
    input: Annotated[list[Message], Field(min_length=1)] = [
        Message(role="user", content="Task, as JSON messages:\n{{item.messages}}")
    ]
    """What the judge sees before the answers; it cannot name the sample, since there are many."""
    instructions: str | None = None
    """What makes an answer better; without it the judge goes by the task alone."""
    anchor: str | None = None
    """Template of an answer, such as {{item.reference_answer}}, that a single answer is compared
    with. Without it, validations compare with the answers of step 0."""


class Endpoint(Named):
    """An HTTP grader of the user's: `{sample, item, trace_id}` in, `{"score": float}` out."""

    calls_out = True
    gets = "the whole sample and the whole row, sent to the address"
    pays = "is what a web service returns"

    type: Literal["endpoint"]
    url: Annotated[str, Field(pattern=r"^https?://[^\s/]+")]
    headers: dict[str, str] | None = None
    """Sent with each call; masked when echoed."""
    rate_limit: Annotated[float, Field(gt=0)] | None = None
    """Most requests a second."""


class Multi(Named):
    """Several graders, combined by a formula over their keys."""

    type: Literal["multi"]
    graders: dict[str, JsonValue]
    """Key -> grader; the keys are the formula's variables."""
    calculate_output: str
    """See `formula`."""


SPECS: dict[str, type[Named]] = {
    "string_check": StringCheck,
    "text_similarity": TextSimilarity,
    "python": Python,
    "score_model": ScoreModel,
    "label_model": LabelModel,
    "rubric": Rubric,
    "relative": Relative,
    "endpoint": Endpoint,
    "multi": Multi,
}


def spec_type(spec: Mapping[str, Any]) -> type[Named]:
    """The class of a spec, with the facts of its type; `Named` for a type that is not known."""
    return SPECS.get(str(spec.get("type")), Named)


def parts(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Key -> leaf; a grader that is not a multi is its own leaf, under the empty key."""
    found = spec.get("graders") if spec.get("type") == "multi" else None
    return dict(found) if isinstance(found, Mapping) else {"": dict(spec)}


def lowest(spec: Mapping[str, Any]) -> float:
    """The lowest reward of a grader, which an answer that cannot be scored gets."""
    return float((spec.get("range") or (0.0, 1.0))[0])


def pass_threshold(spec: Mapping[str, Any]) -> float:
    """The least score that passes: the given one, else 1 for yes-or-no types, half for others.

    The hosted service documents no default; this one is ours, for eval runs and comparisons alike.
    """
    if spec.get("pass_threshold") is not None:
        return float(spec["pass_threshold"])
    if spec_type(spec).is_yes_or_no:
        return 1.0
    low, high = spec.get("range") or (0.0, 1.0)
    return float(low + high) / 2


def calls_out(spec: Mapping[str, Any]) -> bool:
    """Whether grading calls a model or an address."""
    return any(spec_type(part).calls_out for part in parts(spec).values())


def asks_judge(spec: Mapping[str, Any]) -> bool:
    """Whether a model grades, in the grader or a part of it."""
    return any(spec_type(part).asks_judge for part in parts(spec).values())


def compares_group(spec: Mapping[str, Any]) -> bool:
    """Whether a part compares the answers of a group, so that its rewards are relative to them."""
    return any(spec_type(part).compares_group for part in parts(spec).values())
