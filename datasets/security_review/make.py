"""Write the rows of `security_review` from the sentences in topics.txt: `python make.py`.

Every sentence becomes one row. The seed only decides which question of the topic is asked,
whether an unrelated remark stands beside the sentence, and the order of the rows. Nothing here
grades rows, and nothing but the standard library is used, so any Python 3.11+ writes the same
bytes.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
SEED = 20261121
REMARK_SHARE = 0.3
LABELS = {"+": "yes", "-": "no", "~": "needs review", "0": "needs review"}
PROMPT = "Policy: {policy}\nQuestion: {question}\nIs it compliant: yes, no or needs review? Why?"
REMARKS = {
    "train": [
        "This page was last edited in May.",
        "Ask the help desk for details.",
        "A German version is available.",
        "Section 4 lists the contacts.",
        "The rules for travel are separate.",
    ],
    "valid": ["The next edition appears in June.", "Comments go to the author of this page."],
    "test": ["See the wiki for older editions.", "This page replaces the one from 2023."],
}


@dataclass
class Topic:
    """One thing a questionnaire asks about, with every sentence a policy may say on it."""

    split: str
    name: str
    noun: str
    """How an explanation names the topic, for example `the encryption of laptop disks`."""
    questions: list[str] = field(default_factory=list)
    sentences: list[tuple[str, str]] = field(default_factory=list)
    """(mark, sentence); the marks are the keys of LABELS."""


def read_topics(text: str) -> Iterator[Topic]:
    """Parse topics.txt; its first lines explain the format."""
    split, topic = "", None
    for line in text.splitlines():
        mark, _, rest = line.partition(" ")
        if line.startswith("["):
            split = line.strip("[]")
        elif mark == "==":
            if topic:
                yield topic
            name, noun = rest.split(" | ")
            topic = Topic(split, name, noun)
        elif topic and mark == "?":
            topic.questions.append(rest.strip())
        elif topic and mark in LABELS:
            topic.sentences.append((mark, rest.strip()))
    if topic:
        yield topic


def explanation(topic: Topic, mark: str, sentence: str) -> str:
    """The words that decide, as a sentence of their own; or that there are none."""
    if mark == "0":
        return f"The policy says nothing about {topic.noun}."
    braced = re.search(r"\{(.+)\}", sentence)
    words = braced[1] if braced else sentence.removesuffix(".")
    return words[0].upper() + words[1:] + "."


def make_row(topic: Topic, mark: str, sentence: str, rng: random.Random) -> dict[str, object]:
    """One line of the dataset."""
    policy = re.sub(r"[{}]", "", sentence)
    if rng.random() < REMARK_SHARE:
        parts = [policy, rng.choice(REMARKS[topic.split])]
        rng.shuffle(parts)
        policy = " ".join(parts)
    prompt = PROMPT.format(policy=policy, question=rng.choice(topic.questions))
    return {
        "messages": [{"role": "user", "content": prompt}],
        "compliant": LABELS[mark],
        "explanation": explanation(topic, mark, sentence),
        "topic": topic.name,
    }


def main(folder: Path) -> None:
    """Write train.jsonl, valid.jsonl and test.jsonl into `folder`."""
    rng = random.Random(SEED)
    topics = list(read_topics((HERE / "topics.txt").read_text(encoding="utf-8")))
    for split in REMARKS:
        rows = [
            make_row(topic, mark, sentence, rng)
            for topic in topics
            if topic.split == split
            for mark, sentence in topic.sentences
        ]
        rng.shuffle(rows)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_bytes(lines.encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
