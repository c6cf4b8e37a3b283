"""Reports: a parameterised notebook in, one offline HTML file out.

render.run       check parameters → papermill → page       read_summary   its figures back
job.read_job     all that a report on one job shows        summary        it in a few numbers
"""

from rftkit.reports.document import read_summary
from rftkit.reports.job import CHECKPOINTS, JobRecord, read_job, versions
from rftkit.reports.render import notebook_path, run
from rftkit.reports.summary import MIME, publish, summary

__all__ = [
    "CHECKPOINTS",
    "MIME",
    "JobRecord",
    "notebook_path",
    "publish",
    "read_job",
    "read_summary",
    "run",
    "summary",
    "versions",
]
