"""Reinforcement fine-tuning in notebooks, on OpenAI's routes, with a local platform that trains.

    connect                     an `openai.OpenAI` client; starts the local platform if needed
    compile_grader              a grader spec, ready to grade a Sample into a Grade
    datasets, jobs, evals       rooms of verbs: datasets.check, jobs.create, evals.ask, …
    ladder                      a better prompt, and which kind of training was worth it
    graders, reports, views     grading in full, HTML reports, what a notebook shows
    tools                       what a model calls while it is trained: tools.serve
    widgets                     panels: graders, rows and jobs under your hands in a notebook
    RftkitError                 the root of every error raised on purpose

Names load on first use: `import rftkit` itself loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rftkit.lazy import lazily

if TYPE_CHECKING:
    from rftkit import (
        datasets,
        errors,
        evals,
        graders,
        jobs,
        ladder,
        reports,
        tools,
        views,
        widgets,
    )
    from rftkit.client import connect
    from rftkit.errors import RftkitError
    from rftkit.graders import Grade, Sample, compile_grader

    __version__: str

__all__ = [
    "Grade",
    "RftkitError",
    "Sample",
    "__version__",
    "compile_grader",
    "connect",
    "datasets",
    "errors",
    "evals",
    "graders",
    "jobs",
    "ladder",
    "reports",
    "tools",
    "views",
    "widgets",
]

_HOMES = {
    "client": ("connect",),
    "errors": ("RftkitError",),
    "graders": ("Grade", "Sample", "compile_grader"),
}
_load, __dir__ = lazily(__name__, _HOMES, __all__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("rftkit")
    return _load(name)
