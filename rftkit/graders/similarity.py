"""How similar two texts are: (answer, reference) -> 0..1, one function per metric.

The service does not publish its implementations; these come from the packages of its own grader
image. Run as a program, this module compares one pair (see `comparison`). `cosine` is not here: it
needs an embedding call (see `leaves`).

| metric | package and variant |
|---|---|
| fuzzy_match | `rapidfuzz.fuzz.ratio` / 100: normalised Indel similarity, characters, case counts |
| bleu | `nltk` sentence BLEU-4, split on blanks, case counts, smoothing method 1 (0.1 for an empty order); fewer than four tokens: as many orders as tokens |
| gleu | `nltk` sentence GLEU (Google BLEU), orders 1 to 4, split on blanks, case counts |
| meteor | `nltk` METEOR (alpha 0.9, beta 3, gamma 0.5), lower case, exact words and Porter stems: there is no WordNet stage, so no corpus is needed and the number is the same everywhere |
| rouge_1 … rouge_5 | `rouge-score` F1 of n-grams, no stemming; its tokens are lower-case `[a-z0-9]+`, so text in other scripts scores 0 |
| rouge_l | the same tokens, F1 of the longest common subsequence, which `rapidfuzz` finds in linear memory (`rouge-score` builds a table of all pairs) |
"""  # noqa: E501  (a table row is one line)

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["METRICS", "Metric", "metric"]

Metric = Callable[[str, str], float]


def metric(name: str) -> Metric:
    """The function of an `evaluation_metric`; loading its package happens here, not on import."""
    return METRICS[name]()


def _fuzzy_match() -> Metric:
    from rapidfuzz.fuzz import ratio

    return lambda answer, reference: ratio(answer, reference) / 100.0


def _bleu() -> Metric:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method1

    def bleu(answer: str, reference: str) -> float:
        tokens = answer.split()
        if not tokens:
            return 0.0
        return float(
            sentence_bleu([reference.split()], tokens, smoothing_function=smooth, auto_reweigh=True)
        )

    return bleu


def _gleu() -> Metric:
    from nltk.translate.gleu_score import sentence_gleu

    return lambda answer, reference: float(sentence_gleu([reference.split()], answer.split()))


class _NoWordNet:
    """Replaces METEOR's dictionary of synonyms; it has none."""

    def synsets(self, word: str) -> list[Any]:
        return []


def _meteor() -> Metric:
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import single_meteor_score

    stemmer, wordnet = PorterStemmer(), _NoWordNet()
    stemmer.stem = functools.lru_cache(maxsize=65536)(stemmer.stem)

    def meteor(answer: str, reference: str) -> float:
        return float(
            single_meteor_score(reference.split(), answer.split(), stemmer=stemmer, wordnet=wordnet)
        )

    return meteor


def _rouge_n(order: int) -> Metric:
    from rouge_score.rouge_scorer import RougeScorer

    name = f"rouge{order}"
    scorer = RougeScorer([name], use_stemmer=False)
    return lambda answer, reference: float(scorer.score(reference, answer)[name].fmeasure)


def _rouge_l() -> Metric:
    from rapidfuzz.distance.LCSseq import similarity as common_length
    from rouge_score.tokenizers import DefaultTokenizer

    tokenize = DefaultTokenizer(use_stemmer=False).tokenize

    def rouge_l(answer: str, reference: str) -> float:
        ours, theirs = tokenize(answer), tokenize(reference)
        total = len(ours) + len(theirs)
        return 2.0 * common_length(ours, theirs) / total if ours and theirs else 0.0

    return rouge_l


METRICS: dict[str, Callable[[], Metric]] = {
    "fuzzy_match": _fuzzy_match,
    "bleu": _bleu,
    "gleu": _gleu,
    "meteor": _meteor,
    "rouge_1": functools.partial(_rouge_n, 1),
    "rouge_2": functools.partial(_rouge_n, 2),
    "rouge_3": functools.partial(_rouge_n, 3),
    "rouge_4": functools.partial(_rouge_n, 4),
    "rouge_5": functools.partial(_rouge_n, 5),
    "rouge_l": _rouge_l,
}


def _main() -> None:
    """Read `[name, answer, reference]` from stdin, print the number."""
    name, answer, reference = json.load(sys.stdin)
    print(repr(metric(name)(answer, reference)))


if __name__ == "__main__":
    _main()
