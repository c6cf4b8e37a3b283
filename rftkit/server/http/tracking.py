"""Jobs with `integrations`: a process for each, which follows the job and sends its metrics.

The process is the command `rftkit job watch`, so that no tracker runs where models are trained or
requests are answered: one that hangs or fails costs a job nothing. A problem with a tracker that
the process reports becomes an event of the job, once. A process that dies is started again, and a
job that ended while no server ran is followed to its end by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import Counter
from pathlib import Path

from rftkit import settings
from rftkit.integrations import NOTE
from rftkit.server.inference.backlog import poll_forever
from rftkit.server.inference.platform import Platform
from rftkit.server.store.records import TERMINAL, Job

__all__ = ["keep_tracking"]

log = logging.getLogger("rftkit.server")

POLL_SECONDS = 1.0
ATTEMPTS = 3
"""How often the process for a job is started again when it dies."""
END_SECONDS = 2.0
"""How long a process may take to end."""
RECENT = 100
"""Jobs with integrations among which to look for those that are to be followed."""
"""Begins a line of the process that is meant for the job's events."""
COMMAND = "from rftkit.cli.app import main; main()"


async def keep_tracking(platform: Platform, home: Path) -> None:
    """Follow the jobs that ask for it, until cancelled; then their processes end too."""
    tasks: dict[str, asyncio.Task[None]] = {}
    started: Counter[str] = Counter()

    async def poll() -> None:
        for job in await asyncio.to_thread(_due, platform, home):
            task = tasks.get(job.id)
            if started[job.id] < ATTEMPTS and (task is None or task.done()):
                started[job.id] += 1
                tasks[job.id] = asyncio.create_task(_follow(platform, home, job.id, started))

    try:
        await poll_forever("trackers", poll, POLL_SECONDS)
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


def _due(platform: Platform, home: Path) -> list[Job]:
    """Jobs with integrations that are running, or that ended before their last events were sent."""
    return [
        job
        for job in platform.store.tracked_jobs(RECENT)
        if job.status in ("running", "pausing")
        or (job.status in TERMINAL and not _mark(home, job.id).is_file())
    ]


def _mark(home: Path, job_id: str) -> Path:
    """The file of a job that was followed to its end."""
    return home / "trackers" / f"{job_id}.ended"


async def _follow(platform: Platform, home: Path, job_id: str, started: Counter[str]) -> None:
    environment = settings.child_environment({"RFTKIT_HOME": str(home)})
    environment.pop("OPENAI_BASE_URL", None)  # this server, not another one
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", COMMAND, "job", "watch", job_id, "--as-job-says",
        env=environment, cwd=home,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    last = ""
    try:
        async for line in process.stderr:
            last = line.decode(errors="replace").strip() or last
            if last.startswith(NOTE):
                await asyncio.to_thread(_add_event, platform, job_id, last.removeprefix(NOTE))
        await process.wait()
    except asyncio.CancelledError:
        await _ended(process)
        raise
    job = await asyncio.to_thread(platform.store.job, job_id)
    is_over = process.returncode == 0 or "JobFailed" in last or job.status in TERMINAL
    if process.returncode and job.status not in TERMINAL and started[job_id] >= ATTEMPTS:
        await asyncio.to_thread(
            _add_event, platform, job_id, f"what follows the job ended {ATTEMPTS} times: {last}"
        )
    elif is_over:
        started[job_id] = 0  # a job that is resumed is followed again
        if job.status in TERMINAL:
            await asyncio.to_thread(_finish, home, job_id)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """End a process: asked first, then by force, because a tracker's package may not listen."""
    for end in (process.terminate, process.kill):
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            end()
            await asyncio.wait_for(process.wait(), END_SECONDS)
            return


def _finish(home: Path, job_id: str) -> None:
    mark = _mark(home, job_id)
    mark.parent.mkdir(exist_ok=True)
    mark.touch()


def _add_event(platform: Platform, job_id: str, text: str) -> None:
    text = text[:500]
    platform.store.add_event(job_id, text, level="warn", key=f"tracker {text}")
