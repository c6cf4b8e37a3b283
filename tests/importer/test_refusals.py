"""`rftkit import` when something is in the way: permissions, keys, disks, other accounts."""

from __future__ import annotations

import errno
import gzip
import json
import logging
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from importer_calls import Clock, contents, ids, save
from importer_stub import KEY, Account, Fault, Stub, file_object, job, large_account, small_account
from typer.testing import CliRunner

from rftkit.cli.app import app
from rftkit.errors import InputError, RftkitError
from rftkit.importer import Origin, Remote, import_account, origin, verify
from rftkit.importer.dump import Dump
from rftkit.importer.remote import Refused


def everything_written(folder: Path) -> bytes:
    """All files of a folder, unpacked, names included."""
    return b"".join(
        name.encode() + (gzip.decompress(body) if name.endswith(".gz") else body)
        for name, body in {
            str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }.items()
    )


def run(*arguments: str | Path) -> Any:
    """The command as the shell would call it."""
    return CliRunner().invoke(app, ["import", *map(str, arguments)])


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY


def test_what_is_forbidden_is_reported_and_the_rest_is_saved(tmp_path: Path, key: str) -> None:
    account = small_account()
    forbidden = {"times": float("inf"), "error": {"message": "Missing scopes: evals.read"}}
    account.faults = [
        Fault("/evals", "status", 403, **forbidden),
        Fault("ftjob-rft/events", "status", 403, **forbidden),
    ]
    with Stub(account) as stub:
        result = run("--from", stub.url, "--dump", tmp_path)
        assert result.exit_code == 1
        assert "evals: refused: HTTP 403: Missing scopes: evals.read" in result.output
        assert "jobs/ftjob-rft/events: refused" in result.output
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        assert manifest["not_fetched"]["lists/evals"]["status"] == 403
        assert manifest["counts"]["jobs"] == 3
        assert manifest["counts"]["files"] == 3
        account.faults = []
        assert run("--from", stub.url, "--dump", tmp_path).exit_code == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["not_fetched"] == {}
    assert len(ids(tmp_path, "jobs/ftjob-rft/events.jsonl")) == 30


def test_a_kind_that_the_service_no_longer_has_is_in_the_exit_status(
    tmp_path: Path, key: str
) -> None:
    account = small_account()
    account.faults = [Fault("/evals", "status", 410, times=9, error={"message": "Evals is off"})]
    with Stub(account) as stub:
        result = run("--from", stub.url, "--dump", tmp_path)
        assert result.exit_code == 1
        assert "evals: refused: HTTP 410: Evals is off" in result.output
        assert run("--from", stub.url, "--dump", tmp_path, "--only", "files,jobs").exit_code == 0


def test_a_restricted_key_is_not_a_wrong_key(tmp_path: Path) -> None:
    account = small_account()
    error = {"message": "Missing scopes: api.files.read", "code": "missing_scope"}
    account.faults = [Fault("/files", "status", 401, times=float("inf"), error=error)]
    with Stub(account) as stub:
        done = save(stub, tmp_path)
    assert not done.is_complete
    assert done.counts["jobs"] == 3
    assert done.missing["lists/files"]["kind"] == "refused"


def test_an_object_that_keeps_failing_does_not_stop_the_others(tmp_path: Path) -> None:
    account = small_account()
    account.faults = [Fault("ftjob-rft/checkpoints", "status", 500, times=float("inf"))]
    clock = Clock()
    with Stub(account) as stub:
        done = save(stub, tmp_path, clock=clock)
    (missing,) = done.missing.values()
    assert missing["kind"] == "failed"
    assert missing["reason"].endswith("after 8 tries")
    assert done.counts["runs"] == 3
    assert max(clock.waits) <= 30


def test_a_wrong_key_is_one_message_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "sk-wrong-0123456789abcdefghij"
    monkeypatch.setenv("OPENAI_API_KEY", wrong)
    with Stub(small_account()) as stub, pytest.raises(InputError) as caught:
        save_with(origin(stub.url), tmp_path / "dump")
    assert "refuses the key" in str(caught.value)
    assert "OPENAI_API_KEY" in str(caught.value)
    assert wrong not in str(caught.value)  # the stub quotes the key; the live service masks it
    assert not (tmp_path / "dump").exists()


def save_with(source: Origin, folder: Path) -> None:
    clock = Clock()
    remote = Remote(source, on_progress=print, clock=clock, sleep=clock.sleep, timeout_seconds=5)
    try:
        import_account(remote, folder)
    finally:
        remote.close()


def test_a_url_where_nothing_listens(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    with pytest.raises(InputError, match="does not answer like this API"):
        save_with(Origin(url, KEY), tmp_path / "dump")
    assert not (tmp_path / "dump").exists()


def test_a_url_of_something_else(tmp_path: Path) -> None:
    with Stub(small_account()) as stub:
        wrong = Origin(stub.url.removesuffix("/v1") + "/v2", KEY)
        with pytest.raises(InputError, match="it usually ends in /v1"):
            save_with(wrong, tmp_path / "dump")
        stub.account.faults = [Fault("", "garbage", times=float("inf"))]
        with pytest.raises(InputError, match="text/html that is not a JSON object"):
            save_with(Origin(stub.url, KEY), tmp_path / "dump")
    assert not (tmp_path / "dump").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("openai", "OPENAI_API_KEY is not set"),
        ("azure", "AZURE_OPENAI_ENDPOINT is not set"),
        ("sk-0123456789abcdefghij", "expected openai, azure or a base URL"),
        ("https://user:secret@example.com/v1", "carries a user name"),
        ("https://example.com/v1?api-key=secret", "carries a user name, a query"),
    ],
)
def test_sources_that_cannot_be_used(
    source: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=message) as caught:
        origin(source)
    assert "secret" not in str(caught.value)
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected --from"),
        (("--from", "openai", "--dump", "d", "--only", "jbos"), "does not know jbos"),
        (("--from", "openai", "--dump", "d", "--since", "yesterday"), "one like 2026-05-01"),
        (("--verify", "nowhere"), "holds no dump"),
        (("--show", "nowhere"), "holds no dump"),
    ],
)
def test_calls_that_make_no_sense(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("after", [0, 3, 17])
def test_a_full_disk_is_one_message_and_loses_nothing(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, []

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    with Stub(small_account()) as stub:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RftkitError, match="No space left on device; what was saved is safe"):
            save(stub, tmp_path)
        monkeypatch.setattr(os, "fsync", real)
        assert not list(tmp_path.rglob("*.part"))
        assert [line for line in verify(tmp_path) if "interrupted" not in line] == []
        assert save(stub, tmp_path).counts["events"] == 37
    assert verify(tmp_path) == []


@pytest.mark.parametrize("header", ["openai-organization", "openai-project"])
def test_the_dump_of_another_account_is_left_alone(tmp_path: Path, header: str) -> None:
    with Stub(small_account()) as stub:
        save(stub, tmp_path)
        before = contents(tmp_path)
        stub.account.headers = {**stub.account.headers, header: "somebody-else"}
        with pytest.raises(InputError, match=r"holds another account.*somebody-else"):
            save(stub, tmp_path)
    assert contents(tmp_path) == before


def test_another_origin_or_organization_id_is_another_account(tmp_path: Path) -> None:
    with Stub(small_account()) as stub, Stub(small_account()) as other:
        save(stub, tmp_path)
        with pytest.raises(InputError, match="its origin is"):
            save(other, tmp_path)
        stub.account.headers = {}
        newest = {"created_at": 9000, "organization_id": "org-other"}
        stub.account.add("/fine_tuning/jobs", job("ftjob-z", "dpo", "failed", **newest))
        with pytest.raises(InputError, match="its organization_id is org-acme"):
            save(stub, tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with Stub(small_account()) as stub, pytest.raises(InputError, match="not a dump"):
        save(stub, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("manifest", ['{"format": "rftkit-dump/9"}', "{", "[]", "{}"])
def test_a_manifest_that_cannot_be_used(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(InputError, match=r"rftkit-dump/9|cannot be read as a manifest"):
        verify(tmp_path)


def test_two_imports_into_one_folder_are_kept_apart(tmp_path: Path) -> None:
    with Stub(small_account()) as stub:
        at_work = Dump(tmp_path)
        at_work.ledger.open({"origin": stub.url})
        with pytest.raises(InputError, match="another import is at work"):
            save(stub, tmp_path)
        at_work.ledger.close()
        save(stub, tmp_path)
    assert verify(tmp_path) == []


def test_the_key_is_nowhere(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even where the service echoes it: in an object, a refusal, a failure."""
    account = small_account()
    account.add("/fine_tuning/jobs", job("ftjob-e", "dpo", "failed", metadata={"echo": KEY}))
    account.faults = [
        Fault("ftjob-rft/events", "status", 403, error={"message": f"not with {KEY}"}, times=9),
        Fault(
            "ftjob-old/events", "status", 429, headers={"retry-after": "1"}, error={"message": KEY}
        ),
        Fault("evalrun_0?", "status", 404, error={"message": f"Bearer {KEY}"}),
    ]
    caplog.set_level(logging.DEBUG)
    with Stub(account) as stub:
        result = run("--from", stub.url, "--dump", tmp_path)
    assert result.exit_code == 1
    assert "waiting 1 s" in result.output
    assert KEY not in result.output + caplog.text + repr(origin(stub.url))
    written = everything_written(tmp_path)
    assert KEY.encode() not in written
    assert b'"echo": "' + b"*" * len(KEY) + b'"' in written
    shown = run("--show", tmp_path).output + run("--show", tmp_path, "--json").output
    assert KEY not in shown


def test_what_the_service_never_gives_out_does_not_fail_the_import(
    tmp_path: Path, key: str
) -> None:
    account = small_account()
    account.add("/files", file_object("file-asst", "assistants", "a.pdf", 5))
    withheld = {"message": "Not allowed to download files of purpose: assistants"}
    account.faults = [Fault("file-asst/content", "status", 400, error=withheld)]
    account.objects["/files"][0]["bytes"] += 1  # train.jsonl: one byte never comes
    account.objects["/fine_tuning/jobs"][0]["training_file"] = "file-deleted"
    account.objects["/evals/eval_auto/runs"][0]["result_counts"]["total"] = 4
    with Stub(account) as stub:
        done = save(stub, tmp_path)
    assert {what: why["kind"] for what, why in done.missing.items()} == {
        "files/file-asst/content": "withheld",
        "files/file-train/content": "short",
        "files/file-deleted": "gone",
        "evals/eval_auto/runs/evalrun_0/output_items": "short",
    }
    assert done.is_complete
    assert (tmp_path / "files/file-train/content.jsonl").read_bytes() == account.contents[
        "file-train"
    ]


def test_a_lost_connection_ends_the_import_once(tmp_path: Path) -> None:
    account = large_account(10, 10)
    for number in range(40):
        account.add("/files", file_object(f"file-{number}", "fine-tune", "a.jsonl", 3))
    with Stub(account) as stub:
        account.faults = [Fault("/files/", "drop", times=float("inf"))]
        with pytest.raises(RftkitError, match=r"is lost.*run the same command again"):
            save(stub, tmp_path)
        account.faults = []
        for number in range(40):
            account.contents[f"file-{number}"] = b"{}\n"
        assert save(stub, tmp_path).counts["files"] == 40


def test_a_wait_of_hours_is_left_to_the_user(tmp_path: Path) -> None:
    account = small_account()
    account.faults = [Fault("/evals?", "status", 429, headers={"retry-after": "86400"})]
    with Stub(account) as stub, pytest.raises(RftkitError, match="asks to wait 24 hours"):
        save(stub, tmp_path)


def test_no_quota_is_not_waited_for() -> None:
    account, clock = small_account(), Clock()
    fault = Fault("/evals", "status", 429, error={"code": "insufficient_quota"})
    account.faults = [fault]
    with Stub(account) as stub:
        remote = Remote(Origin(stub.url, KEY), on_progress=print, clock=clock, sleep=clock.sleep)
        with pytest.raises(Refused):
            remote.get("/evals")
        remote.close()
    assert clock.waits == []


def test_a_sound_dump_of_an_interrupted_import_is_not_to_be_deleted(tmp_path: Path) -> None:
    with Stub(small_account()) as stub:
        save(stub, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    lines = [{"account": manifest["account"]}]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run("--verify", tmp_path)
    assert result.exit_code == 1
    assert "files checked, 0 wrong" in result.output
    assert "run it again to complete the dump" in result.output
    assert "delete" not in result.output


def test_verify_names_what_is_wrong(tmp_path: Path) -> None:
    with Stub(small_account()) as stub:
        save(stub, tmp_path)
    assert run("--verify", tmp_path).exit_code == 0
    (tmp_path / "jobs/ftjob-rft/job.json").unlink()
    changed = tmp_path / "files/file-train/content.jsonl"
    changed.write_bytes(changed.read_bytes().replace(b"user", b"USER"))
    with (tmp_path / "evals/eval_auto/eval.json").open("ab") as file:
        file.write(b" ")
    (tmp_path / "notes.txt").write_text("what a user adds is no error")
    result = run("--verify", tmp_path)
    assert result.exit_code == 1
    assert "jobs/ftjob-rft/job.json: missing" in result.output
    assert "files/file-train/content.jsonl: its content has changed" in result.output
    assert "evals/eval_auto/eval.json: " in result.output
    assert "3 wrong" in result.output
    assert "ftjob-now" in run("--show", tmp_path).output
    assert len(json.loads(run("--verify", tmp_path, "--json").output)["wrong"]) == 3


@pytest.mark.parametrize("option", ["--verify", "--show"])
def test_what_is_no_dump_is_not_to_be_written_to(option: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for place in ("/dev/null", str(tmp_path), str(tmp_path / "notes.txt"), str(tmp_path / "none")):
        result = run(option, place)
        assert result.exit_code != 0
        said = str(result.exception)
        assert f"{place} holds no dump" in said
        assert "name the folder that rftkit import --dump wrote" in said
        assert "empty folder" not in said


def test_show_tells_what_a_dump_holds(tmp_path: Path) -> None:
    with Stub(small_account()) as stub:
        save(stub, tmp_path)
    shown = run("--show", tmp_path).output
    for words in (
        "acme-research",
        "3 files, 490.4 kB in files, 3 jobs, 37 events",
        "step_metrics.csv",
        "ftjob-rft  reinforcement  succeeded  ft:o4-mini:acme::ftjob-rft",
        "The eval_auto",
        "both  multi  used by jobs/ftjob-now, jobs/ftjob-rft",
    ):
        assert words in shown
    assert json.loads(run("--show", tmp_path, "--json").output)["counts"]["jobs"] == 3


def test_a_changed_or_lost_file_is_fetched_again(tmp_path: Path) -> None:
    account = small_account()
    with Stub(account) as stub:
        save(stub, tmp_path)
        (tmp_path / "jobs/ftjob-rft/events/1-000001.json").unlink()
        save(stub, tmp_path)
    assert verify(tmp_path) == []


def test_azure_is_signed_with_its_own_header(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    account = small_account()
    with Stub(account) as stub:
        host = stub.url.removesuffix("/v1")
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", f"{host}/")
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_API_VERSION", "preview")
        source = origin("azure")
        assert source.base_url == f"{host}/openai/v1"
        save_with(source, tmp_path)
    assert not [headers for headers in account.seen_headers if "authorization" in headers]
    assert {headers["api-key"] for headers in account.seen_headers} == {KEY}
    assert all("api-version=preview" in path for path in account.requests)
    assert verify(tmp_path) == []


def test_a_redirect_does_not_carry_the_key_elsewhere(tmp_path: Path) -> None:
    seen: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(str(self.headers))
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    account = Account()
    location = f"http://localhost:{server.server_address[1]}/v1/files"
    account.faults = [Fault("/evals", "status", 302, headers={"location": location})]
    with Stub(account) as stub:
        remote = Remote(Origin(stub.url, KEY, is_azure=True), on_progress=print)
        with pytest.raises(Refused):
            remote.get("/evals")
        remote.close()
    server.shutdown()
    server.server_close()
    assert len(seen) == 1
    assert KEY not in seen[0]
