"""The records of the store: one frozen dataclass per table, with one field per column.

Records are plain values; their properties only describe them. Times are unix seconds. `wire.py`
turns a record into the object that a client sees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

__all__ = [
    "ACTIVE", "TERMINAL", "Batch", "Checkpoint", "Delivery", "Eval", "EvalRun", "Event", "File",
    "Importable", "Job", "Model", "OutputItem", "Permission", "Record", "StoredResponse",
]  # fmt: skip

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
"""Final job states."""
ACTIVE = frozenset({"validating_files", "queued", "running", "pausing"})
"""Job states that a worker acts on."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A row of one table."""

    TABLE: ClassVar[str]
    JSON: ClassVar[frozenset[str]] = frozenset()
    """Fields stored as JSON text."""
    PATHS: ClassVar[frozenset[str]] = frozenset()
    """Fields stored relative to the home folder, so that the folder can be moved or copied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Importable(Record):
    """A row that may be imported. The platform never changes or runs an imported row."""

    JSON: ClassVar[frozenset[str]] = frozenset({"wire"})
    origin: str | None = None
    """Service and account that it was imported from; None if it was created here."""
    wire: Json | None = None
    """The object as that service returned it; clients see exactly this. The other fields of an
    imported row hold only what queries need: id, parent, order, status, metadata, names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File(Importable):
    """An uploaded or generated file; its bytes are in `HOME/files`, named by their digest."""

    TABLE: ClassVar[str] = "files"
    id: str
    created_at: int
    filename: str
    """The uploader's name for it; never used as a path."""
    purpose: str
    bytes: int
    digest: str
    """SHA-256 of the content, hexadecimal."""
    expires_at: int | None = None

    def is_expired(self, now: int) -> bool:
        """Whether its expiry time has passed."""
        return self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Importable):
    """One fine-tuning job."""

    TABLE: ClassVar[str] = "jobs"
    JSON: ClassVar[frozenset[str]] = Importable.JSON | frozenset(
        {"method", "metadata", "result_files", "error", "usage_metrics", "extra"}
    )
    id: str
    created_at: int
    finished_at: int | None = None
    estimated_finish: int | None = None
    status: str = "validating_files"
    """validating_files, queued, running, pausing, paused, succeeded, failed or cancelled."""
    model: str
    """The base (or fine-tuned) model, as the request named it."""
    suffix: str | None = None
    seed: int
    training_file: str
    validation_file: str
    """Empty when the job has none."""
    method: Json
    """`{type, reinforcement: {grader, hyperparameters, response_format, …}}`, or
    `{type, supervised: {hyperparameters}}`, or the same for dpo. Every hyperparameter is present;
    unset ones are `"auto"`. `measure` has the grader and response format of a job that does not
    learn from them; `held_out` is the grader that a job is watched with. Both are not on the
    wire."""
    metadata: dict[str, str] | None = None
    fine_tuned_model: str | None = None
    result_files: list[str] = field(default_factory=list)
    """Ids of the CSV files with metrics, set when the job ends."""
    trained_tokens: int | None = None
    error: Json | None = None
    """`{code, message, param}` of a failed job."""
    eval_id: str | None = None
    usage_metrics: Json | None = None
    extra: Json = field(default_factory=dict)
    """Unknown keys of the create request, returned to the client unchanged."""
    cancel_requested: bool = False
    """Set together with status `cancelled`; a worker that is still training the job must stop."""
    queue_position: int = 0
    """Position in the queue: a counter that is set when the job is created or resumed."""

    @property
    def is_terminal(self) -> bool:
        """Whether it has ended."""
        return self.status in TERMINAL

    @property
    def method_type(self) -> str:
        """reinforcement, supervised or dpo."""
        return str(self.method.get("type", "reinforcement"))

    @property
    def hyperparameters(self) -> Json:
        """As they were given, unset ones `"auto"`."""
        given: Json = self.method[self.method_type]["hyperparameters"]
        return given

    @property
    def grading(self) -> Json | None:
        """`grader` and `response_format` of its answers; None when nothing is graded."""
        given: Json | None = self.method.get("reinforcement") or self.method.get("measure")
        return given

    @property
    def integrations(self) -> list[Json]:
        """The trackers that its metrics are sent to."""
        found: list[Json] = self.extra.get("integrations") or []
        return found

    @property
    def is_probe(self) -> bool:
        """Whether the job runs only two steps, to estimate the time and memory of the full job."""
        return (self.metadata or {}).get("probe") == "true"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Importable):
    """One entry in a job's event log."""

    TABLE: ClassVar[str] = "events"
    JSON: ClassVar[frozenset[str]] = Importable.JSON | frozenset({"data"})
    id: str
    job_id: str
    created_at: int
    level: str = "info"
    """info, warn or error."""
    message: str
    type: str = "message"
    """message, metrics or moderation_checks."""
    data: Json | None = None
    key: str | None = None
    """Events with the same job and key are stored once; restarted workers repeat them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(Importable):
    """A saved adapter of one step."""

    TABLE: ClassVar[str] = "checkpoints"
    PATHS: ClassVar[frozenset[str]] = frozenset({"folder"})
    JSON: ClassVar[frozenset[str]] = Importable.JSON | frozenset({"metrics"})
    id: str
    job_id: str
    created_at: int
    step: int
    model_name: str
    metrics: Json
    folder: str
    """Folder of the adapter, as the worker reported it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Importable):
    """A fine-tuned model that requests can name: a final model or a checkpoint."""

    TABLE: ClassVar[str] = "models"
    PATHS: ClassVar[frozenset[str]] = frozenset({"folder"})
    name: str
    created_at: int
    base: str
    job_id: str | None = None
    folder: str
    step: int | None = None
    thinking: str | None = None
    """The think tag that opens its reasoning, if it was trained with one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Eval(Importable):
    """Testing criteria and the schema of the items they read."""

    TABLE: ClassVar[str] = "evals"
    JSON: ClassVar[frozenset[str]] = Importable.JSON | frozenset(
        {"metadata", "data_source_config", "testing_criteria", "extra"}
    )
    id: str
    created_at: int
    updated_at: int
    name: str | None = None
    metadata: dict[str, str] | None = None
    data_source_config: Json
    """As in the create request; `wire` adds the combined schema."""
    testing_criteria: list[Json]
    """Graders, each with its own `id`."""
    extra: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRun(Importable):
    """One pass of an eval over a data source."""

    TABLE: ClassVar[str] = "eval_runs"
    JSON: ClassVar[frozenset[str]] = Importable.JSON | frozenset(
        {
            "metadata", "data_source", "result_counts", "per_model_usage",
            "per_testing_criteria_results", "error", "extra",
        }
    )  # fmt: skip
    id: str
    eval_id: str
    created_at: int
    status: str = "queued"
    """queued, in_progress, completed, failed or canceled."""
    name: str | None = None
    model: str | None = None
    metadata: dict[str, str] | None = None
    data_source: Json
    result_counts: dict[str, int] = field(
        default_factory=lambda: {"total": 0, "errored": 0, "failed": 0, "passed": 0}
    )
    per_model_usage: list[Json] | None = None
    per_testing_criteria_results: list[Json] | None = None
    error: Json | None = None
    extra: Json = field(default_factory=dict)
    key: str | None = None
    """Runs with the same eval and key are stored once; a job may repeat one after a crash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputItem(Importable):
    """One graded sample of an eval run."""

    TABLE: ClassVar[str] = "output_items"
    JSON: ClassVar[frozenset[str]] = Importable.JSON | frozenset(
        {"datasource_item", "results", "sample"}
    )
    id: str
    run_id: str
    eval_id: str
    created_at: int
    status: str
    """pass or fail."""
    datasource_item_id: int
    """Row number in the data source, from 0; repeats of a row share it."""
    datasource_item: Json
    results: list[Json]
    """`{name, score, passed, …}` per criterion."""
    sample: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission(Record):
    """A project that may use a checkpoint. Clients can list it; nothing here enforces it."""

    TABLE: ClassVar[str] = "permissions"
    id: str
    created_at: int
    model_name: str
    project_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse(Record):
    """A response that a later one may continue (`previous_response_id`)."""

    TABLE: ClassVar[str] = "responses"
    JSON: ClassVar[frozenset[str]] = frozenset({"body", "input"})
    id: str
    created_at: int
    model: str
    body: Json
    """The response object as the client received it."""
    input: list[Json]
    """The whole conversation before the response, as chat messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Record):
    """Requests of one uploaded file, answered together."""

    TABLE: ClassVar[str] = "batches"
    JSON: ClassVar[frozenset[str]] = frozenset(
        {"metadata", "errors", "request_counts", "usage", "moments"}
    )
    id: str
    created_at: int
    expires_at: int
    endpoint: str
    """The route that answers each request, such as `/v1/responses`."""
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: int | None = None
    """Seconds that its output files are kept; None: until they are deleted."""
    status: str = "validating"
    """validating, in_progress, finalizing, cancelling; or failed, completed, expired, cancelled."""
    model: str | None = None
    errors: list[Json] | None = None
    """`{code, line, message, param}` of a failed batch."""
    output_file_id: str | None = None
    error_file_id: str | None = None
    request_counts: Json = field(default_factory=lambda: {"total": 0, "completed": 0, "failed": 0})
    usage: Json | None = None
    moments: Json = field(default_factory=dict)
    """Status + `_at` → when it was reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery(Record):
    """A webhook event to send: a job or an eval run has ended."""

    TABLE: ClassVar[str] = "deliveries"
    id: str
    created_at: int
    type: str
    """`fine_tuning.job.succeeded`, `eval.run.failed`, …"""
    object_id: str
    attempts: int = 0
    due_at: int | None
    """Time of the next attempt; None after it was delivered or abandoned."""
