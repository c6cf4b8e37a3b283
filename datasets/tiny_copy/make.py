"""Write the rows of `tiny_copy`, where three letters are to be repeated: `python make.py`.

All 512 words of three letters from a to h are shuffled once and dealt out, so that no word occurs
in two splits. A toy: it shows that training works, not that a model is good at anything.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path

SEED = 20261121
ALPHABET = "abcdefgh"
SIZES = {"train": 256, "valid": 64, "test": 64}


def make_row(word: str) -> dict[str, object]:
    """One line of the dataset."""
    return {"messages": [{"role": "user", "content": f"copy: {word}"}], "answer": word}


def main(folder: Path) -> None:
    """Write train.jsonl, valid.jsonl and test.jsonl into `folder`."""
    words = ["".join(letters) for letters in itertools.product(ALPHABET, repeat=3)]
    random.Random(SEED).shuffle(words)
    deck = iter(words)
    for split, size in SIZES.items():
        rows = [make_row(word) for word in itertools.islice(deck, size)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_bytes(lines.encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
