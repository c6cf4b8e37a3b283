"""The store's evals, their runs and output items, stored responses and checkpoint permissions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal

from rftkit.errors import NotFoundError, RequestError
from rftkit.server.store.database import Database, new_id, now, sql_list
from rftkit.server.store.records import (
    TERMINAL,
    Eval,
    EvalRun,
    OutputItem,
    Permission,
    StoredResponse,
)

__all__ = ["Evals"]

ENDINGS = {"completed": "succeeded", "failed": "failed", "canceled": "canceled"}
"""Final states of a run -> their names in webhook events."""
UNFINISHED = "('queued', 'in_progress')"


class Evals(Database):
    """The part of the store that holds evals."""

    def add_eval(
        self,
        testing_criteria: list[dict[str, Any]],
        data_source_config: dict[str, Any],
        *,
        name: str | None = None,
        metadata: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Eval:
        """Store an eval; each criterion already has its `id`."""
        moment = now()
        return self._insert(
            Eval(
                id=new_id("eval_"),
                created_at=moment,
                updated_at=moment,
                name=name,
                metadata=metadata,
                data_source_config=data_source_config,
                testing_criteria=testing_criteria,
                extra=extra or {},
            )
        )

    def eval(self, eval_id: str) -> Eval:
        """Return one eval.

        Raises:
            NotFoundError: when there is none.
        """
        return self._one(Eval, "id = ?", eval_id, missing=eval_id)

    def editable_eval(self, eval_id: str) -> Eval:
        """Return one eval that may be changed.

        Raises:
            NotFoundError: when there is none.
            RequestError: when it was imported.
        """
        record = self.eval(eval_id)
        self._check_not_imported(record, f"eval {eval_id}")
        return record

    def evals(
        self, *, after: str | None = None, limit: int = 20, newest_first: bool = False
    ) -> tuple[list[Eval], bool]:
        """Return a page of evals, in order of creation."""
        return self._page(Eval, "1", (), after=after, limit=limit, newest_first=newest_first)

    def evals_by_update(self) -> list[Eval]:
        """Return all evals, the least recently changed first."""
        return self._find(Eval, "1 ORDER BY updated_at, seq")

    def update_eval(self, eval_id: str, **fields: Any) -> Eval:
        """Change name or metadata.

        Raises:
            NotFoundError: when there is none.
        """
        self.editable_eval(eval_id)
        return self._update(Eval, eval_id, {**fields, "updated_at": now()})

    def delete_eval(self, eval_id: str) -> None:
        """Delete an eval with its runs and items.

        Raises:
            NotFoundError: when there is none.
            RequestError: when a job that has not ended writes to it.
        """
        with self.transaction() as db:
            self.editable_eval(eval_id)
            users = self._rows(
                f"SELECT id FROM jobs WHERE eval_id = ? AND status NOT IN {sql_list(TERMINAL)}",
                eval_id,
            )
            if users:
                raise RequestError(
                    f"eval {eval_id} receives the validations of job {users[0]['id']}, which has "
                    "not ended; cancel the job or wait for it",
                    param="eval_id",
                    code="eval_in_use",
                )
            db.execute("DELETE FROM evals WHERE id = ?", (eval_id,))

    def add_run(
        self,
        eval_id: str,
        data_source: dict[str, Any],
        *,
        name: str | None = None,
        model: str | None = None,
        metadata: dict[str, str] | None = None,
        key: str | None = None,
        **fields: Any,
    ) -> EvalRun:
        """Store a run, `queued` unless `status` is given; with a known `key`, return that run.

        Raises:
            NotFoundError: when there is no such eval.
        """
        with self.transaction():
            self.editable_eval(eval_id)
            if key is not None:
                known = self._find(EvalRun, "eval_id = ? AND key = ?", eval_id, key)
                if known:
                    return known[0]
            return self._insert(
                EvalRun(
                    id=new_id("evalrun_"),
                    eval_id=eval_id,
                    created_at=now(),
                    name=name,
                    model=model,
                    metadata=metadata,
                    data_source=data_source,
                    key=key,
                    **fields,
                )
            )

    def run(self, run_id: str, eval_id: str | None = None) -> EvalRun:
        """Return one run, which must be of `eval_id` if that is given.

        Raises:
            NotFoundError: when there is none.
        """
        run = self._one(EvalRun, "id = ?", run_id, missing=run_id)
        if eval_id is not None and run.eval_id != eval_id:
            raise NotFoundError(f"run {run_id} does not belong to eval {eval_id}", param="run_id")
        return run

    def runs(
        self,
        eval_id: str,
        *,
        status: str | None = None,
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = False,
    ) -> tuple[list[EvalRun], bool]:
        """Return a page of an eval's runs."""
        where, values = "eval_id = ?", [eval_id]
        if status is not None:
            where, values = f"{where} AND status = ?", [*values, status]
        return self._page(
            EvalRun, where, tuple(values), after=after, limit=limit, newest_first=newest_first
        )

    def unfinished_runs(self) -> list[EvalRun]:
        """Return the unfinished runs, oldest first, without jobs' runs and imported ones."""
        where = f"status IN {UNFINISHED} AND key IS NULL AND origin IS NULL ORDER BY seq"
        return self._find(EvalRun, where)

    def update_run(self, run_id: str, **fields: Any) -> EvalRun:
        """Change a run and return it; a run that has ended keeps its status."""
        with self.transaction():
            run = self.run(run_id)
            self._check_not_imported(run, f"run {run_id}")
            if run.status not in ("queued", "in_progress"):
                fields.pop("status", None)
            elif fields.get("status") in ENDINGS:
                self._queue_delivery(f"eval.run.{ENDINGS[fields['status']]}", run_id)
            return self._update(EvalRun, run_id, fields)

    def delete_run(self, run_id: str) -> None:
        """Delete a run with its items."""
        with self.transaction() as db:
            self._check_not_imported(self.run(run_id), f"run {run_id}")
            db.execute("DELETE FROM eval_runs WHERE id = ?", (run_id,))

    def add_items(self, items: Iterable[OutputItem]) -> None:
        """Store all of the output items or none."""
        self._insert_all(OutputItem, items)

    def drop_items(self, run_id: str) -> None:
        """Delete a run's output items."""
        with self.transaction() as db:
            self._check_not_imported(self.run(run_id), f"run {run_id}")
            db.execute("DELETE FROM output_items WHERE run_id = ?", (run_id,))

    def items(
        self,
        run_id: str,
        *,
        status: Literal["pass", "fail"] | None = None,
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = False,
    ) -> tuple[list[OutputItem], bool]:
        """Return a page of a run's output items in order of rows (they finish in any order)."""
        where, values = "run_id = ?", [run_id]
        if status is not None:
            where, values = f"{where} AND status = ?", [*values, status]
        return self._page(
            OutputItem, where, tuple(values), after=after, limit=limit, newest_first=newest_first,
            order=("datasource_item_id", "seq"),
        )  # fmt: skip

    def criteria_counts(self, run_id: str) -> dict[str, tuple[int, int, int]]:
        """Id of each criterion of a run → how many results passed, failed and have no score."""
        rows = self._rows(
            "SELECT json_extract(result.value, '$.name', '$.type') AS names, count(*) AS total, "
            "total(json_extract(result.value, '$.score') IS NULL) AS ungraded, "
            "total(json_extract(result.value, '$.score') IS NOT NULL "
            "AND json_extract(result.value, '$.passed')) AS passed "
            "FROM output_items, json_each(output_items.results) AS result "
            "WHERE run_id = ? GROUP BY 1 ORDER BY min(result.key), 1",
            run_id,
        )
        return {
            str(json.loads(row["names"])[0]): (  # as JSON: SQLite has no text for lone surrogates
                int(row["passed"]),
                row["total"] - int(row["passed"]) - int(row["ungraded"]),
                int(row["ungraded"]),
            )
            for row in rows
        }

    def num_cut(self, run_id: str) -> int:
        """Return how many answers of a run ended at their token limit."""
        [row] = self._rows(
            "SELECT count(*) AS cut FROM output_items "
            "WHERE run_id = ? AND json_extract(sample, '$.finish_reason') = 'length'",
            run_id,
        )
        return int(row["cut"])

    def item(self, item_id: str, run_id: str) -> OutputItem:
        """Return one output item of a run.

        Raises:
            NotFoundError: when there is none.
        """
        return self._one(OutputItem, "id = ? AND run_id = ?", item_id, run_id, missing=item_id)

    # -- permissions and responses -------------------------------------------------------------

    def add_permission(self, model_name: str, project_id: str) -> Permission:
        """Let a project use a checkpoint; a second call changes nothing."""
        with self.transaction():
            permission = Permission(
                id=new_id("cp_"), created_at=now(), model_name=model_name, project_id=project_id
            )
            self._insert(permission, or_ignore=True)
            where = "model_name = ? AND project_id = ?"
            return self._find(Permission, where, model_name, project_id)[0]

    def permissions(
        self,
        model_name: str,
        *,
        project_id: str | None = None,
        after: str | None = None,
        limit: int = 10,
        newest_first: bool = True,
    ) -> tuple[list[Permission], bool]:
        """Return a page of a checkpoint's permissions."""
        where, values = "model_name = ?", [model_name]
        if project_id is not None:
            where, values = f"{where} AND project_id = ?", [*values, project_id]
        return self._page(
            Permission, where, tuple(values), after=after, limit=limit, newest_first=newest_first
        )

    def delete_permission(self, permission_id: str, model_name: str) -> None:
        """Delete a permission.

        Raises:
            NotFoundError: when there is none.
        """
        with self.transaction() as db:
            where = "id = ? AND model_name = ?"
            self._one(Permission, where, permission_id, model_name, missing=permission_id)
            db.execute("DELETE FROM permissions WHERE id = ?", (permission_id,))

    def add_response(self, response: StoredResponse) -> StoredResponse:
        """Store a response that a later one may continue."""
        return self._insert(response)

    def response(self, response_id: str) -> StoredResponse:
        """Return one response.

        Raises:
            NotFoundError: when there is none.
        """
        return self._one(StoredResponse, "id = ?", response_id, missing=response_id)

    def chats(
        self,
        *,
        model: str | None = None,
        metadata: dict[str, str] | None = None,
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = False,
    ) -> tuple[list[StoredResponse], bool]:
        """Return a page of the stored chat completions."""
        where, values = "id LIKE 'chatcmpl-%'", []
        if model is not None:
            where, values = f"{where} AND model = ?", [model]
        where, values = _with_metadata(where, values, metadata)
        return self._page(
            StoredResponse, where, tuple(values), after=after, limit=limit,
            newest_first=newest_first,
        )  # fmt: skip

    def kept_answers(
        self,
        prefix: str,
        *,
        model: str | None = None,
        metadata: dict[str, str] | None = None,
        created_after: int | None = None,
        created_before: int | None = None,
    ) -> list[tuple[int, StoredResponse]]:
        """Return `seq` and record of stored responses whose id has this prefix, oldest first."""
        where = "id LIKE ? || '%'"
        values: list[Any] = [prefix]
        for condition, value in (
            ("model = ?", model),
            ("created_at >= ?", created_after),
            ("created_at <= ?", created_before),
        ):
            if value is not None:
                where, values = f"{where} AND {condition}", [*values, value]
        where, values = _with_metadata(where, values, metadata)
        rows = self._rows(f"SELECT seq, id FROM responses WHERE {where} ORDER BY seq", *values)
        return [(row["seq"], self.response(row["id"])) for row in rows]

    def update_response(self, response_id: str, body: dict[str, Any]) -> StoredResponse:
        """Replace a response's body.

        Raises:
            NotFoundError: when there is no such response.
        """
        return self._update(StoredResponse, response_id, {"body": body})

    def delete_response(self, response_id: str) -> None:
        """Delete a response.

        Raises:
            NotFoundError: when there is none.
        """
        with self.transaction() as db:
            self.response(response_id)
            db.execute("DELETE FROM responses WHERE id = ?", (response_id,))


def _with_metadata(
    where: str, values: list[Any], metadata: dict[str, str] | None
) -> tuple[str, list[Any]]:
    """Return a condition on `responses` that also requires this metadata."""
    for key, value in (metadata or {}).items():
        where += (
            " AND EXISTS (SELECT 1 FROM json_each(responses.body, '$.metadata') AS pair"
            " WHERE pair.key = ? AND pair.value = ?)"
        )
        values = [*values, key, value]
    return where, values
