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
    """Groups that one call shows, and groups that are shown in parts."""
    for size, gap in ((8, GAP), (64, GAP / 5)):
        num = groups * 8 // size
        print(f"{num:,} groups of {size} answers, neighbours {gap} apart: share ordered rightly")
        table(num, size, gap)


def table(groups: int, size: int, gap: float) -> None:
    """A line for each kind of judge, whose noise is in proportion to what is apart."""
    print("noise   bias   one call   two orders   stated   bias found   orders disagree")
    for noise in (0.4 * gap, gap, 2 * gap):
        for bias in (0.0, 0.1, 0.3):
            found = simulate(groups, size, noise, bias, gap=gap)
            print(
                f"{noise:>5.3f}  {bias:>5.2f}  {found.one_call:>9.1%}  {found.both:>11.1%}"
                f"  {found.stated:>7.1%}  {found.bias:>11.3f}  {found.disagreement:>16.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
