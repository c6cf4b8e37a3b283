"""`rftkit import` without its option parsing: save an account, verify a dump or describe it.

The exit status is 0 when everything requested is saved (or the dump is intact). It is 1 when
something is missing or damaged, and 130 after an interruption. The command line reports errors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rftkit import settings
from rftkit.cli.console import table
from rftkit.errors import InputError
from rftkit.importer.dump import safe_name
from rftkit.importer.survey import KINDS
from rftkit.privacy import make_home
from rftkit.wording import listed

if TYPE_CHECKING:
    from rftkit.importer.shutdowns import ModelEnd

__all__ = ["command", "save"]

MOST_LINES = 40
"""Lines of a table of models."""


def command(
    *,
    source: str | None = None,
    dump: Path | None = None,
    only: str | None = None,
    since: str | None = None,
    dry_run: bool = False,
    verify: Path | None = None,
    show: Path | None = None,
    as_json: bool = False,
) -> int:
    """Carry out one call of `rftkit import` and return its exit status.

    Args:
        source: `openai`, `azure` or a base URL (`--from`).
        dump: The folder to write; None for one under `RFTKIT_HOME/dumps`.
        only: Kinds separated by commas.
        since: A date, `2026-05-01`, or a moment in ISO form.
        dry_run: Read the lists only; write nothing.
        verify: Check this dump instead.
        show: Describe this dump instead.
        as_json: Print one JSON object to standard output, and text to standard error.

    Raises:
        InputError: The arguments cannot be used; nothing was written.
        RftkitError: The import stopped; everything saved so far is kept.
    """
    if verify is not None:
        return _verify(verify, as_json)
    if show is not None:
        return _show(show, as_json)
    if source is None:
        raise InputError(
            "expected --from openai|azure|URL to save an account, or a dump or files to open here, "
            "or --verify DIR, or --show DIR"
        )
    status, result = save(source, dump, only=only, since=since, dry_run=dry_run, to_stderr=as_json)
    if as_json and result:
        print(json.dumps(result))
    return status


def save(
    source: str,
    dump: Path | None,
    *,
    only: str | None = None,
    since: str | None = None,
    dry_run: bool = False,
    to_stderr: bool = False,
) -> tuple[int, dict[str, Any]]:
    """Save an account. Returns the exit status and the `--json` result: `dump`, `complete`, ….

    Without `dump`, the account gets its own folder under `RFTKIT_HOME/dumps`.

    Raises:
        InputError: The arguments cannot be used; nothing was written.
        RftkitError: The import stopped; everything saved so far is kept.
    """
    from tqdm import tqdm

    from rftkit.importer.account import import_account
    from rftkit.importer.origins import origin
    from rftkit.importer.remote import Remote
    from rftkit.importer.summaries import save_summary
    from rftkit.importer.survey import account_of

    def on_progress(text: str) -> None:
        tqdm.write(text, file=sys.stderr if to_stderr else sys.stdout)

    kinds, moment = _kinds(only), _moment(since)
    remote = Remote(origin(source), on_progress=on_progress)
    try:
        dump = dump or _home_folder(account_of(remote))
        done = import_account(
            remote, dump, only=kinds, since=moment, dry_run=dry_run, on_progress=on_progress
        )
    except KeyboardInterrupt:
        on_progress("stopped; run the same command again to resume")
        return 130, {}
    finally:
        remote.close()
    base_url = remote.origin.base_url
    on_progress(save_summary(done, dump, origin=base_url, only=kinds, dry_run=dry_run))
    result = {"dump": str(dump), "complete": done.is_complete, **asdict(done)}
    return (0 if done.is_complete else 1), result


def _home_folder(account: Mapping[str, str]) -> Path:
    """One folder for each account, so that accounts never mix."""
    host = urlsplit(account["origin"]).netloc or "account"
    names = [account[name] for name in ("organization", "project") if name in account]
    name = safe_name("-".join([host, *names]).replace(":", "-"))
    return make_home(settings.home()) / "dumps" / name


def _verify(folder: Path, as_json: bool) -> int:
    from rftkit.importer.dump import INTERRUPTED, Dump, verify

    wrong = verify(folder)
    damaged = [each for each in wrong if each != INTERRUPTED]
    num_files = len(Dump(folder).ledger.files)
    if as_json:
        print(json.dumps({"dump": str(folder), "files": num_files, "wrong": wrong}))
    else:
        counted = f"{folder}: {num_files:,} files checked, {len(damaged):,} wrong"
        print("\n".join([counted, *damaged]))
        if damaged:
            print("Delete the damaged files and import again, while the service is there.")
        if damaged != wrong:
            print(f"{INTERRUPTED[0].upper()}{INTERRUPTED[1:]}.")
    return 1 if wrong else 0


def _show(folder: Path, as_json: bool) -> int:
    from rftkit.importer.dump import Dump
    from rftkit.importer.shutdowns import model_ends
    from rftkit.importer.summaries import describe_dump

    text, models = describe_dump(folder), model_ends(folder)
    if as_json:
        manifest = Dump(folder).ledger.manifest()
        shown = {name: manifest[name] for name in manifest if name != "files"}
        print(json.dumps({**shown, "models": [asdict(each) for each in models]}))
    else:
        print("\n".join([text, *_models_text(models)]))
    return 0


def _models_text(models: Sequence[ModelEnd]) -> list[str]:
    """A table of the models that will be shut down, the earliest first."""
    if not models:
        return []
    lines = [
        {
            "goes off": each.shutdown_date or ("no date" if each.is_listed else "not listed"),
            "model": each.model,
            "what": each.kind,
            "job": each.job_id,
            "base model": each.base_model,
            "base goes off": each.base_shutdown_date,
        }
        for each in models
    ]
    text = ["", f"Which of your models go off when ({len(models):,})", table(lines[:MOST_LINES])]
    if len(lines) > MOST_LINES:
        text.append(f"… and {len(lines) - MOST_LINES:,} more, all with --json")
    if by_job := _by_job(models):
        text += ["", f"The same by job ({len(by_job):,})", table(by_job[:MOST_LINES])]
    if any(not each.is_listed for each in models):
        text.append(
            "Not listed: the service's list of models did not name it when the account was saved."
        )
    return text


def _by_job(models: Sequence[ModelEnd]) -> list[dict[str, Any]]:
    """A line for each job: when its models go off, the job with the first one first."""
    jobs: dict[str, list[ModelEnd]] = {}
    for each in models:
        if each.job_id is not None:
            jobs.setdefault(each.job_id, []).append(each)
    return [
        {
            "job": job_id,
            "models": len(found),
            "go off": listed(sorted({each.shutdown_date or "no date" for each in found})),
            "base model": found[0].base_model,
            "base goes off": found[0].base_shutdown_date,
        }
        for job_id, found in jobs.items()
    ]


def _kinds(only: str | None) -> list[str]:
    kinds: Sequence[str] = [k.strip() for k in only.split(",") if k.strip()] if only else KINDS
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise InputError(f"--only does not know {', '.join(unknown)}; it takes {', '.join(KINDS)}")
    return list(kinds)


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"--since {text!r} is not a date; expected one like 2026-05-01") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
