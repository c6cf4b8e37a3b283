"""Reports: a parameterised notebook in, one offline HTML file out.

render.run       check parameters → papermill → page        read_summary   its figures back
summary.summary  a job in a few numbers
"""

from rftkit.reports.render import notebook_path, read_summary, run
from rftkit.reports.summary import MIME, summary

__all__ = ["MIME", "notebook_path", "read_summary", "run", "summary"]
