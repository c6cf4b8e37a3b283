"""The tool of `policy_lookup`: search the policy of the company that a row asks about.

A job names it as `rftkit://policy_lookup`, and the platform starts it. To serve it yourself:
`rftkit.tools.serve(TOOLS, state=STATE)`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

NOTHING = "Nothing found."
COMMON = set(
    "a all an and any are at be before by can do does every for from have how in is it its long of"
    " on or our than that the there they to we what when who with you your".split()
)


class Policy:
    """The policy of one company; the state of a rollout."""

    def __init__(self, item: dict[str, Any]) -> None:
        self.sections = policies().get(item.get("company", ""), [])

    def find(self, query: str) -> str:
        """The sentence that shares the rarest words with the query."""
        wanted = words(query)
        pages = [words(f"{each['about']} {each['text']}") for each in self.sections]
        seen = Counter(word for page in pages for word in page)
        scores = [sum(math.log(1 + len(pages) / seen[word]) for word in wanted & page)
                  for page in pages]  # fmt: skip
        best = max(range(len(scores)), key=scores.__getitem__, default=None)
        if best is None or scores[best] == 0:
            return NOTHING
        return str(self.sections[best]["text"])


@cache
def policies() -> dict[str, list[dict[str, str]]]:
    """Company -> its sections: what each is about, and its sentence."""
    text = (Path(__file__).parent / "policies.json").read_text(encoding="utf-8")
    found: dict[str, list[dict[str, str]]] = json.loads(text)
    return found


def words(text: str) -> set[str]:
    """The words that tell one section from another, without endings."""
    found = re.findall(r"[a-z]+", text.lower())
    return {re.sub(r"(ing|ed|es|s)$", "", word) or word for word in found if word not in COMMON}


def search_policy(query: str, state: Policy) -> str:
    """Find the sentence of the company's policy about something.

    Args:
        query: what to look for
    """
    return state.find(query)


TOOLS = [search_policy]
STATE = Policy
