"""Write the rows of `contract_facts` from passages.txt, and grader.json from grader.py.

Run `python make.py`. The seed decides which invented names, dates and amounts fill a passage and
how they are written. Nothing here grades rows, and nothing but the standard library is used, so
any Python 3.11+ writes the same bytes.
"""

from __future__ import annotations

import datetime
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
SEED = 20261121
COPIES = {"train": 7, "valid": 6, "test": 6}  # rows made from each passage
PROMPT = """{passage}

Give the seller, the buyer, the start date and the price. Leave empty what is not stated."""
ONSETS = "b br c d dr f fl g gr h k l m n p pr r s st t tr v w z".split()
VOWELS = "a e i o u".split()
CODAS = "l lm n nd r rk rt s sk v x".split()
TRADES = (
    "Foods Works Systems Paper Logistics Textiles Energy Marine Tools Glass Farms Steel".split()
)
FORMS = ["Ltd", "Inc", "GmbH", "", "", ""]
FIRST_NAMES = (
    "Ada Bruno Carla Dina Emil Fara Goran Hilda Ivo Jana Karim Lena Milo Nora Otto".split()
)
MONTHS = (
    "January February March April May June July August September October November December"
).split()
CURRENCIES = {"EUR": ("€", "euros"), "USD": ("$", "dollars"), "GBP": ("£", "pounds")}


class Names:
    """Invented names; a stem is handed out once in the whole dataset."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.used: set[str] = set()

    def stem(self) -> str:
        """Two syllables, never used before."""
        pick = self.rng.choice
        while True:
            name = pick(ONSETS) + pick(VOWELS) + pick(ONSETS) + pick(VOWELS) + pick(CODAS)
            if name not in self.used:
                self.used.add(name)
                return name.capitalize()

    def company(self) -> str:
        """For example `Drevask Foods Ltd`."""
        return f"{self.stem()} {self.rng.choice(TRADES)} {self.rng.choice(FORMS)}".strip()

    def party(self) -> str:
        """A company, or one time in four a person."""
        if self.rng.random() < 0.25:
            return f"{self.rng.choice(FIRST_NAMES)} {self.stem()}"
        return self.company()


def date_writer(rng: random.Random) -> Callable[[datetime.date], str]:
    """One of three spellings, kept through a passage."""
    spelling = rng.choice(["{0.day} {1} {0.year}", "{1} {0.day}, {0.year}", "{0:%Y-%m-%d}"])
    return lambda date: spelling.format(date, MONTHS[date.month - 1])


def amount_writer(currency: str, rng: random.Random) -> Callable[[int], str]:
    """One of three spellings, kept through a passage."""
    sign, word = CURRENCIES[currency]
    spelling = rng.choice([sign + "{:,}", currency + " {:,}", "{:,} " + word])
    return spelling.format


def make_row(template: str, names: Names, rng: random.Random) -> dict[str, object]:
    """Fill one passage; facts without a place in it become empty strings."""
    start = datetime.date(2023, 1, 1) + datetime.timedelta(days=rng.randrange(1400))
    currency = rng.choice(list(CURRENCIES))
    less, price, more = sorted(100 * number for number in rng.sample(range(10, 1000), 3))
    date, amount = date_writer(rng), amount_writer(currency, rng)
    parties = {key: names.party() for key in ("seller", "buyer", "other")}
    passage = template.format(
        **parties,
        date=date(start),
        before=date(start - datetime.timedelta(days=rng.randrange(10, 200))),
        after=date(start + datetime.timedelta(days=rng.randrange(40, 400))),
        amount=amount(price),
        less=amount(less),
        more=amount(more),
    )
    return {
        "messages": [{"role": "user", "content": PROMPT.format(passage=passage)}],
        "seller": parties["seller"],
        "buyer": parties["buyer"],
        "date": start.isoformat() if "{date}" in template else "",
        "amount": f"{currency} {price}" if "{amount}" in template else "",
    }


def write_grader(folder: Path) -> None:
    """grader.json is grader.py in a wrapper."""
    source = (HERE / "grader.py").read_text(encoding="utf-8")
    spec = {"type": "python", "name": "contract_facts", "source": source, "image_tag": "2025-05-08"}
    text = json.dumps(spec, ensure_ascii=False, indent=2) + "\n"
    (folder / "grader.json").write_bytes(text.encode())


def main(folder: Path) -> None:
    """Write the three splits and grader.json into `folder`."""
    rng = random.Random(SEED)
    names = Names(rng)
    sections = re.split(
        r"^\[(\w+)\]\n", (HERE / "passages.txt").read_text(encoding="utf-8"), flags=re.M
    )
    for split, passages in zip(sections[1::2], sections[2::2], strict=True):
        templates = passages.split("\n") * COPIES[split]
        rows = [make_row(template, names, rng) for template in templates if template]
        rng.shuffle(rows)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_bytes(lines.encode())
    write_grader(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
