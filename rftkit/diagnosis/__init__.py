"""Why a job does not learn: one set of rules for events, panels, reports and checks.

    story    the training history of a job, summarised from its metric events
    rules    find problems in a history, each with advice and the setting to try
    answers  the rules about closed answers
    alarms   signs that the reward rises without the answers getting better, tested at every step
    trend    the test: bets on ranks
    gains    which sub-graders a gain came from, and which show no clear change

The rules read only metric events. So a resumed job, a finished job and a job of another service are
judged in the same way. If a service does not report a figure, the rules that need it are skipped.
`server.training.signal` computes the figures, and `views` shows the findings.
"""

from rftkit.diagnosis.alarms import ALARMS, Alarm, Alarms
from rftkit.diagnosis.answers import collapsed, never_sampled, share_words
from rftkit.diagnosis.finding import Finding
from rftkit.diagnosis.gains import Change, gain_sentence, validation_gains
from rftkit.diagnosis.rules import CUT_SHARE, FLAT_SHARE, findings
from rftkit.diagnosis.story import Story, story_of

__all__ = [
    "ALARMS",
    "CUT_SHARE",
    "FLAT_SHARE",
    "Alarm",
    "Alarms",
    "Change",
    "Finding",
    "Story",
    "collapsed",
    "findings",
    "gain_sentence",
    "never_sampled",
    "share_words",
    "story_of",
    "validation_gains",
]
