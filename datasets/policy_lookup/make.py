"""Write `policy_lookup` from the topics of `security_review`: `python make.py`.

A company's policy says one sentence on every topic of its split; a row asks one question about one
company. The policy is in policies.json, which only the tool reads. supervised.jsonl has transcripts
of the first companies: a search, its result, and the answer. Nothing but the standard library is
used, so any Python 3.11+ writes the same bytes.
"""

from __future__ import annotations

import json
import random
import re
import runpy
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCE = HERE.parent / "security_review"
SEED = 20261129
STARTERS = 5
"""Companies of train whose rows are transcripts too."""
PROMPT = "Company: {company}\nQuestion: {question}\nIs it compliant: yes, no or needs review? Why?"
COMPANIES = {
    "train": (
        "Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Ginkgo", "Hazel", "Ivy", "Juniper",
        "Katsura", "Larch",
    ),
    "valid": ("Maple", "Nutmeg", "Oak", "Pine", "Quince", "Rowan"),
    "test": ("Spruce", "Tamarind", "Ulmus", "Viburnum", "Willow", "Yew"),
}  # fmt: skip
TOOL = {
    "type": "function",
    "function": {
        "name": "search_policy",
        "description": "Find the sentence of the company's policy about something.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "what to look for"}},
            "required": ["query"],
            "additionalProperties": False,
        },
    },
}

Json = dict[str, Any]


def main(folder: Path) -> None:
    """Write the rows, the policies and the transcripts into `folder`."""
    rng = random.Random(SEED)
    source = runpy.run_path(str(SOURCE / "make.py"))
    topics = list(source["read_topics"]((SOURCE / "topics.txt").read_text(encoding="utf-8")))
    policies: dict[str, list[Json]] = {}
    transcripts: list[Json] = []
    for split, companies in COMPANIES.items():
        rows = []
        for topic in (each for each in topics if each.split == split):
            sentences = rng.sample(topic.sentences, len(topic.sentences))
            about = " ".join([topic.name, topic.noun, *topic.questions])
            for company, (mark, sentence) in zip(companies, sentences, strict=True):
                text = re.sub(r"[{}]", "", sentence)
                policies.setdefault(company, []).append({"about": about, "text": text})
                question = rng.choice(topic.questions)
                row = {
                    "messages": [{"role": "user", "content": PROMPT.format(
                        company=company, question=question)}],
                    "tools": [TOOL],
                    "parallel_tool_calls": False,
                    "compliant": source["LABELS"][mark],
                    "explanation": source["explanation"](topic, mark, sentence),
                    "topic": topic.name,
                    "company": company,
                }  # fmt: skip
                rows.append(row)
                if company in COMPANIES["train"][:STARTERS]:
                    transcripts.append(transcript(row, question, text))
        rng.shuffle(rows)
        write(folder / f"{split}.jsonl", rows)
    rng.shuffle(transcripts)
    write(folder / "supervised.jsonl", transcripts)
    text = json.dumps(policies, ensure_ascii=False, indent=1) + "\n"
    (folder / "policies.json").write_bytes(text.encode())


def transcript(row: Json, question: str, found: str) -> Json:
    """The row with a search for its question, what the search finds, and the right answer."""
    query = json.dumps({"query": question.removesuffix("?")})
    call = {"id": "call_1", "type": "function", "function": {
        "name": "search_policy", "arguments": query}}  # fmt: skip
    answer = {"compliant": row["compliant"], "explanation": row["explanation"]}
    told = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": found},
        {"role": "assistant", "content": json.dumps(answer)},
    ]
    shown = {key: row[key] for key in ("tools", "parallel_tool_calls")}
    return {"messages": [*row["messages"], *told], **shown}


def write(path: Path, rows: list[Json]) -> None:
    """One line for each row."""
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
