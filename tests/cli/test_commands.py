"""The command line as it is typed: output, exit status, one line per error."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from conftest import GRADER, ROW, Served

from rftkit import client, datasets
from rftkit.cli import app as cli
from rftkit.cli import troubles

GOLDEN = Path(__file__).parents[1] / "golden" / "cli_help.txt"
COMMANDS = (
    "", "demo", "import", "serve", "lab", "grade", "check", "report", "dataset", "dataset convert",
    "dataset split", "dataset sample", "dataset profile",
    "eval", "eval run", "eval list", "eval show", "eval compare", "grader",
    "grader calibrate", "grader hosted", "job", "job create", "job list",
    "job show", "job tree",
    "job watch", "job pause", "job resume", "job cancel", "job rerun", "models",
    "models list", "models delete", "models add", "models remove", "models export",
    "models prepare", "prompt", "prompt optimize", "ladder",
)  # fmt: skip


class Done(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: Served) -> Run:
    """Type a command in this process; `connect()` gives the platform in memory."""

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["rftkit", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    monkeypatch.setattr(client, "connect", lambda *_: served.client)
    return run


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_bytes(ROW)
    (tmp_path / "grader.json").write_text(json.dumps(GRADER))
    return tmp_path


def test_help_reads_as_reviewed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    text = "\n".join(f"$ rftkit {c} --help\n{run(*c.split(), '--help').out}" for c in COMMANDS)
    if not GOLDEN.exists():
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
    cut = [line for line in text.splitlines() if line.startswith("  ") and line.endswith("...")]
    assert not cut, "the first sentence of a command is too long for the list"


def test_the_version(run: Run) -> None:
    assert run("--version") == Done(0, f"rftkit {version('rftkit')}\n", "")


def test_every_command_is_in_that_list() -> None:
    from typer.main import get_command

    def names(command: Any, prefix: str = "") -> set[str]:
        found = {prefix.strip()}
        for name, each in getattr(command, "commands", {}).items():
            found |= names(each, f"{prefix} {name}")
        return found

    assert names(get_command(cli.app)) == set(COMMANDS)


def test_check(run: Run, files: Path) -> None:
    done = run("check", files / "rows.jsonl", "--grader", files / "grader.json")
    assert done.status == 0
    assert "1 reference answer graded: it earns 1.000" in done.out
    (files / "rows.jsonl").write_bytes(b"{\n" + ROW)
    done = run("check", files / "rows.jsonl", "--json")
    assert done.status == 1
    found = json.loads(done.out)
    assert found["ok"] is False
    assert found["findings"][0]["code"] == "invalid_row"


def test_grade(run: Run, files: Path) -> None:
    lines = [{"item": {"answer": "x"}, "sample": said} for said in ("x", "y")]
    (files / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = run("grade", files / "grader.json", files / "a.jsonl")
    assert done.status == 0
    assert [line.split() for line in done.out.splitlines()][:3] == [
        ["answer", "reward", "outcome", "errors"],
        ["1", "1.000", "graded"],
        ["2", "0.000", "graded"],
    ]
    assert "0.500" in done.out
    rewards = json.loads(run("grade", files / "grader.json", files / "a.jsonl", "--json").out)
    assert [each["reward"] for each in rewards] == [1.0, 0.0]


def test_grade_fails_when_a_grade_failed(run: Run, files: Path) -> None:
    (files / "a.jsonl").write_text(json.dumps({"item": {}, "sample": "x"}))
    done = run("grade", files / "grader.json", files / "a.jsonl")
    assert done.status == 1
    assert "invalid_variable_error" in done.out


def test_evals_are_listed_with_the_date_of_their_making(run: Run, served: Served) -> None:
    record = served.platform.store.add_eval([], {"type": "custom", "item_schema": {}}, name="mine")
    seconds = json.loads(run("eval", "list", "--json").out)["evals"][0]["created_at"]
    shown = run("eval", "list").out
    assert record.id in shown
    assert f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC" in shown
    assert str(seconds) not in shown


def test_a_job_from_files_to_its_end(run: Run, files: Path, served: Served) -> None:
    done = run(
        "job", "create", "-m", "rftkit-tiny", "--train", files / "rows.jsonl",
        "--valid", files / "rows.jsonl", "-g", files / "grader.json", "-p", "batch_size=2",
        "--metadata", "team=blue", "--seed", 5, "--json",
    )  # fmt: skip
    assert done.status == 0, done.err
    job = json.loads(done.out)
    hyperparameters = job["method"]["reinforcement"]["hyperparameters"]
    assert (job["seed"], job["metadata"], hyperparameters["batch_size"]) == (5, {"team": "blue"}, 2)
    day = f"{datetime.now(UTC):%Y-%m-}"
    listed = run("job", "list").out
    assert job["id"] in listed
    assert day in listed
    assert day in run("job", "show", job["id"]).out
    assert json.loads(run("job", "list", "--json").out)[0]["id"] == job["id"]

    store = served.platform.store
    store.update_job(job["id"], status="running")
    assert run("job", "pause", job["id"]).out.startswith(f"{job['id']} is paus")
    store.update_job(job["id"], status="paused")
    assert run("job", "resume", job["id"]).status == 0
    store.add_checkpoint(job["id"], 8, "ft:x:ckpt-step-8", {"full_valid_mean_reward": 0.5}, "")
    assert "ft:x:ckpt-step-8" in run("job", "show", job["id"]).out
    assert json.loads(run("job", "show", job["id"], "--json").out)["checkpoints"][0]["step"] == 8
    assert run("job", "cancel", job["id"]).out == f"{job['id']} is cancelled\n"
    watched = run("job", "watch", job["id"])
    assert watched.status == 1
    assert "was cancelled" in watched.err


def test_job_create_prints_what_the_service_warns_of(run: Run, files: Path) -> None:
    """A job of answers that nothing can score was created in silence; only `watch` said it."""
    grader = datasets.read_json(files / "grader.json")
    (files / "json.json").write_text(
        json.dumps(grader | {"input": "{{sample.output_json.answer}}"})
    )
    done = run(
        "job", "create", "-m", "rftkit-tiny", "--train", files / "rows.jsonl",
        "--valid", files / "rows.jsonl", "-g", files / "json.json",
    )  # fmt: skip
    assert done.out.startswith("ftjob-")
    assert "It may be that no answer can be scored" in done.err
    assert "response format" in done.err


def test_job_create_takes_file_ids(run: Run, files: Path, served: Served) -> None:
    given = served.upload()
    done = run(
        "job", "create", "-m", "rftkit-tiny", "--train", given, "--valid", given,
        "-g", files / "grader.json",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert served.client.fine_tuning.jobs.retrieve(done.out.strip()).training_file == given


def test_models(run: Run, served: Served) -> None:
    served.platform.store.add_model("ft:rftkit-tiny:local::x", "rftkit-tiny", None, "")
    assert "ft:rftkit-tiny:local::x" in run("models", "list").out
    assert run("models", "delete", "ft:rftkit-tiny:local::x").status == 0
    assert "ft:" not in run("models", "list", "--json").out


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        (["check", "nowhere.jsonl"], 2, "nowhere.jsonl: there is no such file"),
        (["grade", "nowhere.json", "x.jsonl"], 2, "nowhere.json: there is no such file"),
        (["job", "show", "ftjob-nope"], 1, "ftjob-nope"),
        (["models", "delete", "nope"], 1, "nope"),
        (["report", "nope", "-o", "x.html"], 1, "report_job"),
        (["report", "report_job", "-o", "x.html", "-p", "job_id"], 2, "-p job_id has no value"),
        (
            ["job", "create", "-m", "m", "--train", "no.jsonl", "--valid", "v", "-g", "g.json"],
            2,
            "g.json",
        ),
        (["demo", "--dataset", "nope"], 2, "security_review"),
        (["job"], 2, ""),
        (["nope"], 2, "No such command"),
    ],
)
def test_an_error_is_one_message_and_a_status(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    status: int,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert done.status == status
    assert expected in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "home"])


def test_a_platform_out_of_reach_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    away = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="x", max_retries=0)
    monkeypatch.setattr(client, "connect", lambda *_: away)
    done = run("job", "list")
    assert done.status == 1
    assert "cannot reach http://127.0.0.1:9/v1/fine_tuning/jobs" in done.err


def test_serve_in_the_foreground(home: Path) -> None:
    """It answers, says where it is, and ends in order when it is told to."""
    assert shell("serve", "--status").returncode == 1
    server = subprocess.Popen(rftkit("serve", "--port", "0"), stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        [address] = re.findall(r"http://\S+/v1", line)
        status = json.loads(shell("serve", "--status", "--json").stdout)
        assert (status["base_url"], status["pid"]) == (address, server.pid)
        assert shell("models", "list").stdout.count("rftkit-tiny") == 1
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.wait()
        if server.stdout:
            server.stdout.close()
    assert (
        shell("serve", "--stop").stdout
        == "The server is not running. Start it with: rftkit serve\n"
    )


def rftkit(*words: str) -> list[str]:
    return [sys.executable, "-c", "from rftkit.cli.app import main; main()", *words]


def shell(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(rftkit(*words), capture_output=True, text=True, timeout=60, check=False)


def test_check_with_a_grader_says_what_cheats_earn(run: Run, files: Path) -> None:
    done = run("check", files / "rows.jsonl", "--grader", files / "grader.json", "--json")
    audit = json.loads(done.out)["audit"]
    assert audit["honest"] == 1.0
    assert {cheat["name"] for cheat in audit["cheats"]} >= {"empty", "judge_injection"}
    words = run("check", files / "rows.jsonl", "--grader", files / "grader.json").out
    assert "no cheat pays" in words


def test_grade_asks_the_judge_of_the_platform(run: Run, files: Path, served: Served) -> None:
    served.link.say = lambda request: '{"steps": [], "result": 0.25}'
    judge = {
        "type": "score_model",
        "name": "judge",
        "model": "rftkit-tiny",
        "input": [{"role": "user", "content": "{{item.answer}} {{sample.output_text}}"}],
    }
    (files / "judge.json").write_text(json.dumps(judge))
    (files / "samples.jsonl").write_text('{"item": {"answer": "hi"}, "sample": "ho"}\n')
    done = run("grade", files / "judge.json", files / "samples.jsonl", "--json")
    assert [grade["reward"] for grade in json.loads(done.out)] == [0.25]


def test_a_closed_or_full_standard_output_is_no_traceback(files: Path) -> None:
    start = "from rftkit.cli.app import main; main()"
    command = f'"{sys.executable}" -c "{start}" serve --routes'
    for redirect in (">&-", "> /dev/full", "| head -1"):
        done = subprocess.run(f"{command} {redirect}", shell=True, capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"\xffa\n{}\n", b"{}\n"])
def test_a_profile_of_nothing_that_can_be_used(run: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    done = run("dataset", "profile", tmp_path / "rows.jsonl")
    assert done.status == 2
    assert "has no row that can be used" in done.err


def test_a_home_that_leads_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("RFTKIT_HOME", str(tmp_path / "loop"))
    monkeypatch.setattr(sys, "argv", ["rftkit", "models", "list"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith("rftkit: ")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_in_any_encoding(encoding: str, files: Path) -> None:
    rows = files / "rows.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "日本 é →"}], "answer": "é"}\n')
    start = "from rftkit.cli.app import main; main()"
    command = [sys.executable, "-c", start, "check", str(rows), "--quick"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for more in ([], ["--json"]):
        done = subprocess.run(command + more, capture_output=True, env=environment)
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.returncode == 0
        if more:
            assert json.loads(done.stdout.decode(encoding))["ok"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(13, "Permission denied", "/x/page.html"),
            "/x/page.html: Permission denied",
        ),
        (RecursionError(), "nested too deeply"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "is not UTF-8"),
        (MemoryError(), "not enough memory"),
        (OSError(28, "No space left on device", "/x/y"), "the disk that holds /x/y is full"),
        (OSError(28, "No space left on device"), "the disk that holds the output is full"),
        (OSError(24, "Too many open files"), "raise the limit with `ulimit -n 4096`"),
    ],
)
def test_errors_of_the_machine_are_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def broken(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", broken)
    done = run("check", "x")
    assert done.status == 1
    assert words in done.err
    assert done.err.count("\n") == 1


def test_the_disk_that_is_full_is_named(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A JSON array is converted by way of TMPDIR, and an error of writing does not name a disk."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rftkit.datasets.documents.write_lines", full)
    monkeypatch.setattr(troubles, "has_no_room", lambda place: place == Path(tempfile.gettempdir()))
    (files / "rows.json").write_text('[{"prompt": "hi", "answer": "x"}]')
    done = run("dataset", "convert", files / "rows.json", files / "out.jsonl")
    assert done.status == 1
    assert f"the disk of temporary files (TMPDIR) ({tempfile.gettempdir()}) is full" in done.err
    assert not (files / "out.jsonl").exists()


@pytest.mark.parametrize("name", ["rftkit-tiny", "smollm2-135m-instruct"])
def test_a_name_that_comes_with_rftkit_cannot_be_taken(run: Run, tmp_path: Path, name: str) -> None:
    """The platform would go on to use its own model, whatever the folder holds."""
    from rftkit.server.engine.models import BUNDLED

    assert name in BUNDLED
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    done = run("models", "add", folder)
    assert done.status == 2
    assert f"{name} is a model that comes with rftkit" in done.err


def test_cut_off_answers_are_counted_apart(run: Run, files: Path) -> None:
    cut = {"choices": [{"message": {"content": "hi"}, "finish_reason": "length"}]}
    rows = [{"item": {"answer": "hi"}, "sample": each} for each in (cut, "hi", "no")]
    (files / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("grade", files / "grader.json", files / "a.jsonl")
    assert done.status == 0
    head, values = done.out.rstrip().split("\n")[-2:]
    assert head.split() == ["reward", "unscorable", "failed", "cut", "off"]
    assert values.split() == ["0.667", "0", "0", "1"]


def test_a_line_that_cannot_be_read_is_named_before_anything_is_graded(
    run: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RFTKIT_UNCONFINED_GRADERS", "1")
    seen = tmp_path / "seen"
    source = f"def grade(sample, item):\n    open({str(seen)!r}, 'a').write('x')\n    return 1.0\n"
    (files / "g.json").write_text(json.dumps({"type": "python", "name": "g", "source": source}))
    (files / "a.jsonl").write_text('{"output_text": "a"}\n' * 3 + '{"output_text": "b", }\n')
    done = run("grade", files / "g.json", files / "a.jsonl")
    assert done.status == 2
    assert "a.jsonl:4" in done.err
    assert not seen.exists()
