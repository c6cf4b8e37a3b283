"""Agreement from a few labels: draws of its share and of kappa, for several thresholds.

A Bayesian bootstrap (Rubin 1981): rows get random weights instead of being drawn again, and each
of the four cells of pass/fail by accept/reject holds a part of a row before any label is seen.
Without that, twenty of twenty right would leave no doubt at all. An interval covers the results of
two such priors: the smaller one fits graders that nearly always agree, the larger one the others.
`tests/benchmarks/evals.py` prints how often intervals hold the truth. Not here: reading labels, and
the sentences about them (`agreement`).
"""

from __future__ import annotations

from collections.abc import Sequence

from rftkit.evals.cells import Array
from rftkit.evals.comparison import Estimate

__all__ = ["PRIORS", "draw_agreement", "gains", "interval_of", "luck_p"]

PRIORS = (0.25, 0.5)
"""Rows that each cell holds before any label."""
NUM_DRAWS, NUM_EXCHANGES = 2000, 500
CAUTION = 0.4
"""Of the false alarms allowed, the share that `gains` is given: with few labels luck is larger
than draws say."""


def draw_agreement(
    rows: Array, passes: Array, person: Array, prior_rows: float, *, seed: int = 0
) -> tuple[Array, Array]:
    """Draws of the share of verdicts that agree and of Cohen's kappa.

    Args:
        rows: The row of each sample, (samples,): samples of a row get one weight.
        passes: Verdicts of the grader, 0 or 1, (samples, thresholds).
        person: Verdicts of people, (samples,).
        prior_rows: One of `PRIORS`.
        seed: Of the draws.

    Returns:
        Both (draws, thresholds).
    """
    import numpy as np

    names, place = np.unique(np.asarray(rows).astype(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    weights = rng.standard_exponential((NUM_DRAWS, len(names)))[:, place]
    prior = rng.standard_gamma(prior_rows, (NUM_DRAWS, 4)) * len(place) / len(names)
    total = (weights.sum(axis=1) + prior.sum(axis=1))[:, None]
    both, only_grader, only_person = (prior[:, [cell]] for cell in range(3))
    passed = (weights @ passes + both + only_grader) / total
    accepted = ((weights @ person)[:, None] + both + only_person) / total
    agreed = (weights @ (passes * person[:, None]) + both) / total
    share: Array = 1 - passed - accepted + 2 * agreed
    chance = passed * accepted
    return share, 2 * (agreed - chance) / (passed + accepted - 2 * chance)


def interval_of(value: float | None, draws: Sequence[Array], num: int, level: float) -> Estimate:
    """A value of `num` rows with the middle part of its draws under each prior, (draws,) each.

    The value itself is always inside.
    """
    import numpy as np

    if value is None or not num:
        return Estimate(value, None, None, num)
    ends = [np.quantile(each, [0.5 - level / 2, 0.5 + level / 2]) for each in draws]
    low, high = min(each[0] for each in ends), max(each[1] for each in ends)
    return Estimate(value, min(float(low), value), max(float(high), value), num)


def gains(now: Array, others: Array, level: float) -> Array:
    """How much more each of several choices agrees at least than the present one, all together.

    The best of many thresholds looks better by luck. The largest of all deviations, each in its
    own standard deviations, says how large luck gets (max-T).

    Args:
        now: Draws of kappa as it is, (draws,).
        others: Draws of kappa of the choices, (draws, choices).
        level: That no bound at all is too high.
    """
    import numpy as np

    more = others - now[:, None]
    middle, spread = more.mean(axis=0), more.std(axis=0)
    spread[spread < 1e-9] = np.inf  # exchanging verdicts changes nothing here
    lucky = ((middle - more) / spread).max(axis=1, initial=0.0)
    known = np.isfinite(spread)
    bound: Array = np.full(len(spread), -np.inf)
    critical = np.quantile(lucky, 1 - CAUTION * (1 - level))
    bound[known] = middle[known] - critical * spread[known]
    return bound


def luck_p(rows: Array, choices: Array, person: Array, *, seed: int = 0) -> float:
    """How often a grader without any information gains as much kappa by its best choice.

    The labels of a row could then as well be those of another row with as many samples, and in any
    other order.

    Args:
        rows: The row of each sample, (samples,).
        choices: Verdicts now and with each choice, 0 or 1, (samples, 1 + choices).
        person: Verdicts of people, (samples,).
        seed: Of the exchanges.
    """
    import numpy as np

    _, place = np.unique(np.asarray(rows).astype(str), return_inverse=True)
    order = np.argsort(place, kind="stable")
    choices, person, sizes = choices[order], person[order], np.bincount(place)
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    exchanged = np.tile(person, (1 + NUM_EXCHANGES, 1))  # the first row is left as it is
    for size in np.unique(sizes):
        blocks = starts[sizes == size][:, None] + np.arange(size)
        for labels in exchanged[1:]:
            labels[blocks] = rng.permuted(person[rng.permutation(blocks)], axis=1)
    passed, accepted = choices.mean(axis=0), person.mean()
    chance, both = passed * accepted, exchanged @ choices / len(person)
    spread = passed + accepted - 2 * chance
    kappa = np.divide(2 * (both - chance), spread, out=np.zeros_like(both), where=spread > 1e-12)
    best = (kappa[:, 1:] - kappa[:, [0]]).max(axis=1)
    return float((best >= best[0] - 1e-9).mean())
