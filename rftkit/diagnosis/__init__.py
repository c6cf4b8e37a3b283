"""Why a job does not learn, in words: one set of rules for events, panels, reports and checks.

    story    what the metric events of a job say, read one after the other
    rules    from a story to findings, each with what to do and the setting to try
    gains    which sub-graders a gain came from, and which cannot be told from before

The rules read nothing but metric events, so that a resumed job, a finished one and one of another
service are judged alike; a figure that a service does not report silences the rules that need it.
Not here: making the figures (`server.training.signal`), and showing the findings (`views`).
"""

from rftkit.diagnosis.gains import Change, gain_sentence
from rftkit.diagnosis.rules import (
    CUT_SHARE,
    FLAT_SHARE,
    Finding,
    collapsed,
    findings,
    never_sampled,
    share_words,
    validation_gains,
)
from rftkit.diagnosis.story import Story, story_of

__all__ = [
    "CUT_SHARE",
    "FLAT_SHARE",
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
