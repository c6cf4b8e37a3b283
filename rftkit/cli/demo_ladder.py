"""Which rung was worth it, on a bundled dataset: `rftkit demo --ladder`.

The base model, a better prompt, supervised training on the reference answers, and RFT from the
supervised model, all on the same test rows. It is `rftkit ladder` with settings that fit a laptop;
all of them are in `LADDERS`. One seed shows that a rung works, not how well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rftkit import connect, jobs
from rftkit.cli.demo import Seconds, writable_folder
from rftkit.cli.ladder import ladder_text, write_page
from rftkit.ladder import Budget, Plan, climb, open_data, read

__all__ = ["LADDERS", "RUNGS", "run_ladder"]

RUNGS = ("base", "prompt", "supervised", "supervised_reinforcement")
"""RFT from the base is `rftkit demo` itself."""

SMALL = Plan(
    model="smollm2-135m-instruct",
    max_completion_tokens=64,
    budget=Budget(candidates=3, train_rows=16, finalists=1, valid_rows=30),
    hyperparameters={
        "supervised": {"batch_size": 4, "n_epochs": 3, "learning_rate_multiplier": 2},
        "supervised_reinforcement": {
            "batch_size": 32,
            "n_epochs": 1,
            "learning_rate_multiplier": 0.3,  # most answers are right already
            "eval_interval": 10,
            "eval_samples": 1,
        },
    },
)
LADDERS = {
    "security_review": SMALL,
    "contract_facts": replace(SMALL, max_completion_tokens=96),
    "tiny_copy": Plan(
        model="rftkit-tiny",
        temperature=1.0,  # its most likely letters are right from the start, with low confidence
        max_completion_tokens=8,
        budget=Budget(candidates=2, train_rows=8, finalists=1, valid_rows=16),
        hyperparameters={
            "supervised": {"batch_size": 16, "n_epochs": 1, "learning_rate_multiplier": 5},
            "supervised_reinforcement": {
                "batch_size": 16,
                "n_epochs": 1,
                "learning_rate_multiplier": 5,
                "compute_multiplier": 1.0,
                "eval_interval": 8,
                "eval_samples": 1,
            },
        },
    ),
}
"""The settings for each bundled dataset; the seed is added."""


def run_ladder(
    name: str = "security_review",
    *,
    seed: int = 1,
    out: Path | str = "reports",
    on_progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Climb the rungs on a bundled dataset and write the page.

    With the same seed and folder, a second run reuses finished rungs.

    Args:
        name: A key of `LADDERS`.
        seed: Of the jobs and the prompt search.
        out: Folder for the page and the state.
        on_progress: Called with each line of output.

    Returns:
        The rungs, the sentence, seconds and paths, for programs.

    Raises:
        InputError: The dataset or the folder cannot be used.
    """
    plan, seconds, out = replace(LADDERS[name], seed=seed), Seconds(), writable_folder(out)
    state_path = out / f"ladder-{name.replace('_', '-')}-{seed}.json"
    with seconds("starting the platform"):
        client = connect()
    with seconds("climbing"):
        state = climb(
            client,
            open_data(name),
            plan,
            RUNGS,
            state_path,
            on_progress=on_progress,
            follow=jobs.Progress,
        )
    made = read(state)
    on_progress(f"\n{ladder_text(made)}\n")
    with seconds("page"):
        page = write_page(state_path, state_path.with_suffix(".html"))
    on_progress(f"\n{seconds.table()}\n\nThe page, one HTML file: {page.resolve()}")
    return {
        "dataset": name,
        "seed": seed,
        **made.to_dict(),
        "seconds": seconds.parts,
        "state": str(state_path.resolve()),
        "report": str(page.resolve()),
    }
