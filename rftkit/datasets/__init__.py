"""Datasets from the client's side: read, check, upload. One row's shape is `rftkit.rows`."""

from rftkit.datasets.answers import read_samples
from rftkit.datasets.check import check
from rftkit.datasets.findings import Check, FileFacts, Finding, Place
from rftkit.datasets.io import Dataset, bundled, load, read, read_json, upload
from rftkit.datasets.rowfile import NumberedRow, Rows, open
from rftkit.graders import reference_answer

__all__ = [
    "Check",
    "Dataset",
    "FileFacts",
    "Finding",
    "NumberedRow",
    "Place",
    "Rows",
    "bundled",
    "check",
    "load",
    "open",
    "read",
    "read_json",
    "read_samples",
    "reference_answer",
    "upload",
]
