"""Datasets from the client's side. One row's shape is `rftkit.rows`.

look        open (any form, any size) · read · profile · check, the dataset doctor · verdict_finding
learn       preview: what a model earns on some rows, and which of them teach
draft       draft_grader · draft_format: first ones, from the rows
make        convert, to RFT rows or supervised rows (Columns: of a table) · preferences
            split · sample · write_prompted
send        upload
find        load: rows, grader and response format of a folder, file or name · bundled
files       read_json · read_tools · read_samples · each_sample
"""

from rftkit.datasets.answers import each_sample, read_samples
from rftkit.datasets.check import check
from rftkit.datasets.columns import Columns
from rftkit.datasets.convert import Conversion, convert
from rftkit.datasets.drafts import draft_format, draft_grader
from rftkit.datasets.findings import Check, FileFacts, Finding, Place
from rftkit.datasets.io import (
    Dataset,
    bundled,
    load,
    read,
    read_json,
    read_tools,
    upload,
    upload_name,
)
from rftkit.datasets.learnability import Preview, preview, spread_rows
from rftkit.datasets.places import bundled_names
from rftkit.datasets.preferences import (
    GradedAnswer,
    GradedGroup,
    Preferences,
    groups_of_rollouts,
    groups_of_samples,
    preferences,
    read_groups,
)
from rftkit.datasets.profile import profile
from rftkit.datasets.prompted import write_prompted
from rftkit.datasets.references import verdict_finding
from rftkit.datasets.rowfile import Rows, open
from rftkit.datasets.rowlines import NumberedRow
from rftkit.datasets.sampled import SampledRow
from rftkit.datasets.split import Split, sample, split
from rftkit.graders import reference_answer

__all__ = [
    "Check",
    "Columns",
    "Conversion",
    "Dataset",
    "FileFacts",
    "Finding",
    "GradedAnswer",
    "GradedGroup",
    "NumberedRow",
    "Place",
    "Preferences",
    "Preview",
    "Rows",
    "SampledRow",
    "Split",
    "bundled",
    "bundled_names",
    "check",
    "convert",
    "draft_format",
    "draft_grader",
    "each_sample",
    "groups_of_rollouts",
    "groups_of_samples",
    "load",
    "open",
    "preferences",
    "preview",
    "profile",
    "read",
    "read_groups",
    "read_json",
    "read_samples",
    "read_tools",
    "reference_answer",
    "sample",
    "split",
    "spread_rows",
    "upload",
    "upload_name",
    "verdict_finding",
    "write_prompted",
]
