"""Each metric against a second implementation, written from its definition, and known values."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.stem.snowball import PorterStemmer as OtherStemmer
from rouge_score.rouge_scorer import RougeScorer

from rftkit.graders.similarity import METRICS, metric

TEXT = (
    "the a model answers answered answering question quickly Yes no policy's 12 3.5 data-set "
    "encrypted Encryption is are rest transit customers, keys. (rotated) Ünïcode naïve"
)
WORDS = TEXT.split()


def pairs(count: int) -> list[tuple[str, str]]:
    """Texts that share words, from empty to 14 words, some of them equal."""
    chance = random.Random(7)
    out = []
    for _ in range(count):
        reference = chance.choices(WORDS, k=chance.randrange(15))
        answer = [word for word in reference if chance.random() < 0.8]
        for _ in range(chance.randrange(4)):
            answer.insert(chance.randrange(len(answer) + 1), chance.choice(WORDS))
        if chance.random() < 0.2:
            chance.shuffle(answer)
        out.append((" ".join(answer), " ".join(reference)))
    return out


def lcs(one: object, other: object) -> int:
    row = [0] * (len(other) + 1)  # type: ignore[arg-type]
    for x in one:  # type: ignore[attr-defined]
        last = 0
        for place, y in enumerate(other, start=1):  # type: ignore[arg-type]
            last, row[place] = row[place], last + 1 if x == y else max(row[place], row[place - 1])
    return row[-1]


def grams(tokens: list[str], order: int) -> Counter:
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def fuzzy(answer: str, reference: str) -> float:
    total = len(answer) + len(reference)
    return 2 * lcs(answer, reference) / total if total else 1.0


def bleu(answer: str, reference: str) -> float:
    ours, theirs = answer.split(), reference.split()
    if not set(ours) & set(theirs):
        return 0.0
    orders = min(4, len(ours))
    logs = []
    for order in range(1, orders + 1):
        mine = grams(ours, order)
        hits = (mine & grams(theirs, order)).total()
        logs.append(math.log((hits or 0.1) / max(1, mine.total())))
    brevity = min(0.0, 1 - len(theirs) / len(ours))
    return math.exp(brevity + sum(logs) / orders)


def gleu(answer: str, reference: str) -> float:
    ours, theirs = answer.split(), reference.split()
    mine = sum((grams(ours, order) for order in range(1, 5)), Counter())
    wanted = sum((grams(theirs, order) for order in range(1, 5)), Counter())
    most = max(mine.total(), wanted.total())
    return (mine & wanted).total() / most if most else 0.0


def meteor(answer: str, reference: str) -> float:
    ours, theirs = answer.lower().split(), reference.lower().split()
    stem = OtherStemmer().stem
    free_ours, free_theirs = set(range(len(ours))), set(range(len(theirs)))
    matched = []
    for key in (lambda word: word, stem):
        for i in sorted(free_ours, reverse=True):
            found = [j for j in free_theirs if key(ours[i]) == key(theirs[j])]
            if found:
                matched.append((i, max(found)))
                free_ours.discard(i)
                free_theirs.discard(max(found))
    if not matched:
        return 0.0
    matched.sort()
    chunks = 1 + sum((b[0] - a[0], b[1] - a[1]) != (1, 1) for a, b in itertools.pairwise(matched))
    precision, recall = len(matched) / len(ours), len(matched) / len(theirs)
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    return mean * (1 - 0.5 * (chunks / len(matched)) ** 3)


def rouge_tokens(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def f1(hits: int, ours: int, theirs: int) -> float:
    return 2 * hits / (ours + theirs) if hits else 0.0


def rouge_n(order: int) -> Callable[[str, str], float]:
    def rouge(answer: str, reference: str) -> float:
        mine, wanted = grams(rouge_tokens(answer), order), grams(rouge_tokens(reference), order)
        return f1((mine & wanted).total(), mine.total(), wanted.total())

    return rouge


def rouge_l(answer: str, reference: str) -> float:
    ours, theirs = rouge_tokens(answer), rouge_tokens(reference)
    return f1(lcs(ours, theirs), len(ours), len(theirs))


SECOND = {
    "fuzzy_match": fuzzy,
    "bleu": bleu,
    "gleu": gleu,
    "meteor": meteor,
    "rouge_l": rouge_l,
} | {f"rouge_{order}": rouge_n(order) for order in range(1, 6)}


def test_every_metric_has_a_second_implementation() -> None:
    assert set(SECOND) == set(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_agrees_with_a_second_implementation(name: str) -> None:
    ours, other = metric(name), SECOND[name]
    values = []
    for answer, reference in pairs(1000):
        values.append(ours(answer, reference))
        assert values[-1] == pytest.approx(other(answer, reference), abs=1e-12), (answer, reference)
        assert 0.0 <= values[-1] <= 1.0
    assert len(set(values)) > 50  # the pairs are not all alike


def test_rouge_l_is_that_of_rouge_score() -> None:
    ours, package = metric("rouge_l"), RougeScorer(["rougeL"])
    for answer, reference in pairs(300):
        expected = package.score(reference, answer)["rougeL"].fmeasure
        assert ours(answer, reference) == pytest.approx(expected, abs=1e-12)


def test_known_values() -> None:
    hypothesis = (
        "It is a guide to action which ensures that the military always obeys "
        "the commands of the party"
    )
    reference = (
        "It is a guide to action that ensures that the military will forever heed Party commands"
    )
    assert metric("fuzzy_match")("this is a test", "this is a test!") == pytest.approx(28 / 29)
    assert metric("rouge_1")("police killed the gunman", "police kill the gunman") == 0.75
    assert metric("rouge_2")("police killed the gunman", "police kill the gunman") == (
        pytest.approx(1 / 3)
    )
    assert metric("meteor")(hypothesis, reference) == pytest.approx(0.6944, abs=5e-5)
    assert metric("gleu")(hypothesis, reference) == pytest.approx(0.4393, abs=5e-3)
    assert metric("bleu")("yes", "yes") == 1.0
    assert metric("meteor")("fox jumped", "fox jumping") == pytest.approx(1 - 0.5 * 0.125)


@pytest.mark.parametrize("name", METRICS)
def test_the_reference_itself_is_at_the_top(name: str) -> None:
    text = "Data is encrypted at rest with keys that customers rotate every year"
    assert metric(name)(text, text) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", METRICS)
@given(
    answer=st.text(st.characters(codec=None), max_size=60),
    reference=st.text(st.characters(codec=None), max_size=60),
)
@settings(max_examples=60)
def test_any_text_with_lone_surrogates_too(name: str, answer: str, reference: str) -> None:
    value = metric(name)(answer, reference)
    assert type(value) is float
    assert 0.0 <= value <= 1.0


@pytest.mark.parametrize("name", METRICS)
def test_a_megabyte_against_a_sentence(name: str) -> None:
    assert metric(name)("word \ud800 é " * 100_000, "a word of a sentence") < 0.5
