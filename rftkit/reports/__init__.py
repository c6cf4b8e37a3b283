"""Reports: a parameterised notebook in, one offline HTML file out.

run              check parameters → papermill → page       read_summary   read a page's figures
sweep            one page for each setting, and an index   sweep_jobs     the same, training jobs
In notebooks:
read_job         the data of a report on one job           publish        figures for programs
table            a table with its full rows as a CSV       made_from      sources, with hashes
"""

from rftkit.reports.comparing import comparison_figures, comparison_sources, grader_of
from rftkit.reports.document import read_summary
from rftkit.reports.job import JobRecord, read_job
from rftkit.reports.job_sweep import sweep_jobs
from rftkit.reports.provenance import made_from, versions
from rftkit.reports.render import notebook_path, read_values, run
from rftkit.reports.summary import MIME, publish, summary
from rftkit.reports.sweep import Sweep, sweep
from rftkit.reports.tables import csv_beside, elsewhere, table

__all__ = [
    "MIME",
    "JobRecord",
    "Sweep",
    "comparison_figures",
    "comparison_sources",
    "csv_beside",
    "elsewhere",
    "grader_of",
    "made_from",
    "notebook_path",
    "publish",
    "read_job",
    "read_summary",
    "read_values",
    "run",
    "summary",
    "sweep",
    "sweep_jobs",
    "table",
    "versions",
]
