"""What one platform has: its models and judge, the graders it accepts, and its files of rows.

Everything is read, nothing is run or created. What was read once is kept for the next question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urljoin

from rftkit.errors import GraderSpecError, InputError
from rftkit.examples import READERS
from rftkit.jsontext import digest_of

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

__all__ = ["Place", "message_of", "place"]


Json = dict[str, Any]


@dataclass(slots=True)
class Place:
    """What one platform has."""

    client: OpenAI
    models: frozenset[str]
    """Names of the models that the platform serves."""
    judge_base_url: str | None
    """The service that runs its judges; None for the local models."""
    _faults: dict[str, str | None] = field(default_factory=dict)
    _files: dict[str, Json | None] = field(default_factory=dict)
    _rows: dict[str, str | None] = field(default_factory=dict)

    def fault_of(self, spec: Mapping[str, Any], purpose: Literal["rft", "eval"]) -> str | None:
        """Why the platform refuses a grader, such as a missing package; None if it accepts it.

        The route knows graders of jobs only, so those of evals are checked in this process.
        """
        from openai import BadRequestError

        from rftkit.graders import validate

        key = purpose + digest_of(spec)
        if key not in self._faults:
            self._faults[key] = None
            try:
                if purpose == "eval":
                    validate(spec, purpose="eval")
                else:
                    self.client.fine_tuning.alpha.graders.validate(grader=spec)  # type: ignore[arg-type]
            except BadRequestError as error:
                self._faults[key] = message_of(error)
            except GraderSpecError as error:
                self._faults[key] = error.message
        return self._faults[key]

    def file(self, file_id: str) -> Json | None:
        """A file's object; None when it is not here."""
        from openai import NotFoundError as Missing

        if file_id not in self._files:
            try:
                found = self.client.files.retrieve(file_id)
                self._files[file_id] = found.to_dict(warnings=False)
            except Missing:
                self._files[file_id] = None
        return self._files[file_id]

    def row_fault(self, file_id: str, filename: str, method: str, grader: Json) -> str | None:
        """The first row that is unreadable or lacks a field of the grader, or None."""
        key = file_id + method + digest_of(grader)
        if key not in self._rows:
            lines = self.client.files.content(file_id).iter_lines()
            self._rows[key] = _row_fault(lines, filename, method, grader)
        return self._rows[key]


def place(client: OpenAI) -> Place:
    """Read what the local platform has.

    Raises:
        InputError: The service is not an rftkit platform.
    """
    from openai import NotFoundError as Missing

    url = urljoin(str(client.base_url), "/rftkit/imports")
    try:
        about: Any = client.get(url, cast_to=object)
    except Missing:
        raise InputError(f"{client.base_url} is not an rftkit platform") from None
    models = [each.to_dict(warnings=False) for each in client.models.list()]
    own = frozenset(str(each["id"]) for each in models if not each.get("imported_from"))
    return Place(client, own, about["judge_base_url"])


def _row_fault(lines: Iterable[str], filename: str, method: str, grader: Json) -> str | None:
    from rftkit.graders import check_item_paths

    try:
        encoded = (line.encode("utf-8", "surrogatepass") for line in lines)
        for row in READERS[method](encoded, path=filename):
            if not grader:
                continue
            try:
                check_item_paths(grader, row.item)
            except GraderSpecError:
                continue  # the grader itself is at fault, which is reported with the grader
            except InputError as error:
                return f"{filename}:{row.line}: {error.message}"
    except InputError as error:
        return error.message
    return None


def message_of(error: APIStatusError) -> str:
    """The platform's message, without the client's prefix."""
    body = error.body
    return str(body.get("message")) if isinstance(body, dict) else error.message
