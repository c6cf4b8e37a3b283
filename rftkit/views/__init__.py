"""Views: pure functions from data to HTML that Jupyter shows and a report keeps.

    rewards, steps    reward_chart · health_chart · signal_chart · time_chart · diagnosis
    while it runs     job_status · rollouts · training_steps
    before and after  headline · answers
    comparisons       compare_headline · compare_runs · reward_curve · difference_chart · …
    ladders           ladder_headline · ladder_chart
    graders           criteria · agreement · judge_noise · drift_chart · regrade
    datasets          check_page · findings · check_rows · preview_table · profile_chart · …
    lists             table · keyvalues · events · migration
    source            spec
    ground            markup (escaping, assets, page) · listing · plot (panels)

No view asks a server or reads a file, and none needs a kernel once it is shown: a static table is
there first, and one small script makes it filter, sort and page.
"""

from rftkit.views.alarms import alarms
from rftkit.views.answers import answers, one_row
from rftkit.views.branches import job_tree
from rftkit.views.charts import health_chart, reward_chart
from rftkit.views.compare_charts import difference_chart, reward_curve, row_paths, slice_chart
from rftkit.views.compare_rows import compare_rows, jumps_for
from rftkit.views.compare_tables import (
    compare_headline,
    compare_runs,
    grader_means,
    pair_facts,
    slice_lines,
)
from rftkit.views.criteria import criteria
from rftkit.views.doctor import (
    audit_table,
    check_page,
    check_rows,
    check_verdict,
    findings,
    preview_table,
    profile_facts,
)
from rftkit.views.facts import events, keyvalues
from rftkit.views.headline import headline
from rftkit.views.jumps import StepJumps
from rftkit.views.ladder import LADDER, ladder_chart, ladder_headline
from rftkit.views.listing import table
from rftkit.views.markup import Html, about, bullets, heading, note, page
from rftkit.views.migration import migration
from rftkit.views.profile import profile_chart
from rftkit.views.quality import agreement, drift_chart, judge_noise, regrade
from rftkit.views.signal import diagnosis, signal_chart
from rftkit.views.source import spec
from rftkit.views.steps import training_steps
from rftkit.views.timing import time_chart
from rftkit.views.watch import job_status, rollouts

__all__ = [
    "LADDER",
    "Html",
    "StepJumps",
    "about",
    "agreement",
    "alarms",
    "answers",
    "audit_table",
    "bullets",
    "check_page",
    "check_rows",
    "check_verdict",
    "compare_headline",
    "compare_rows",
    "compare_runs",
    "criteria",
    "diagnosis",
    "difference_chart",
    "drift_chart",
    "events",
    "findings",
    "grader_means",
    "heading",
    "headline",
    "health_chart",
    "job_status",
    "job_tree",
    "judge_noise",
    "jumps_for",
    "keyvalues",
    "ladder_chart",
    "ladder_headline",
    "migration",
    "note",
    "one_row",
    "page",
    "pair_facts",
    "preview_table",
    "profile_chart",
    "profile_facts",
    "regrade",
    "reward_chart",
    "reward_curve",
    "rollouts",
    "row_paths",
    "signal_chart",
    "slice_chart",
    "slice_lines",
    "spec",
    "table",
    "time_chart",
    "training_steps",
]
