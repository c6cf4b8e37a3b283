"""Does relative judging keep its rate? `python tests/benchmarks/relative.py [GROUPS]`.

For judges of three kinds of noise and three position biases (`tests/relative_study.py`): the share
of neighbours in quality that one call ranks rightly, the share that the grader does with its two
orders, and the rate that is stated for it; the position bias that it reports, and how often the
orders disagree.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from relative_study import GAP, simulate


def main(groups: int) -> None:
    print(f"{groups:,} groups of 8 answers, neighbours {GAP} apart: share ordered rightly")
    print("noise   bias   one call   two orders   stated   bias found   orders disagree")
    for noise in (0.02, 0.05, 0.1):
        for bias in (0.0, 0.1, 0.3):
            found = simulate(groups, 8, noise, bias)
            print(
                f"{noise:>5.2f}  {bias:>5.2f}  {found.one_call:>9.1%}  {found.both:>11.1%}"
                f"  {found.stated:>7.1%}  {found.bias:>11.3f}  {found.disagreement:>16.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
