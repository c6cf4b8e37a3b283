"""Views: pure functions from data to HTML that Jupyter shows and a report keeps.

    rewards, steps    reward_chart · health_chart · time_chart
    while it runs     standing · rollouts
    before and after  headline · answers
    lists             table · keyvalues · events
    source            spec
    ground            markup (escaping, assets, page) · listing · plot (panels)

No view asks a server or reads a file, and none needs a kernel once it is shown: a static table is
there first, and one small script makes it filter, sort and page.
"""

from rftkit.views.answers import answers
from rftkit.views.charts import health_chart, reward_chart, time_chart
from rftkit.views.facts import events, keyvalues
from rftkit.views.headline import headline
from rftkit.views.listing import table
from rftkit.views.markup import Html, note, page
from rftkit.views.source import spec
from rftkit.views.watch import rollouts, standing

__all__ = [
    "Html",
    "answers",
    "events",
    "headline",
    "health_chart",
    "keyvalues",
    "note",
    "page",
    "reward_chart",
    "rollouts",
    "spec",
    "standing",
    "table",
    "time_chart",
]
