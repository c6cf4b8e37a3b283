"""The ladder: a better prompt, supervised, dpo and reinforcement jobs, and which was worth it.

climb               do the rungs that are not done, on any service that speaks OpenAI's routes
read                what they came to: a comparison on the same test rows, costs, a sentence
optimize_prompt     the rung below training: a prompt file, every candidate with its interval
"""

from rftkit.ladder.asking import Cost, Task
from rftkit.ladder.climb import answers_path, climb
from rftkit.ladder.kept import Kept, open_kept
from rftkit.ladder.reflection import Reflect, reflect_with
from rftkit.ladder.result import Ladder, read
from rftkit.ladder.rungs import CHOICES, LABELS, METHODS, Plan, rungs_for
from rftkit.ladder.search import Budget, Candidate, PromptSearch, optimize_prompt
from rftkit.ladder.sources import open_data, rows_of
from rftkit.ladder.state import RungState, State, read_state

__all__ = [
    "CHOICES",
    "LABELS",
    "METHODS",
    "Budget",
    "Candidate",
    "Cost",
    "Kept",
    "Ladder",
    "Plan",
    "PromptSearch",
    "Reflect",
    "RungState",
    "State",
    "Task",
    "answers_path",
    "climb",
    "open_data",
    "open_kept",
    "optimize_prompt",
    "read",
    "read_state",
    "reflect_with",
    "rows_of",
    "rungs_for",
]
