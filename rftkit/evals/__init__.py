"""Evals from the client's side: ask models the same questions, grade, add up."""

from rftkit.evals.answers import Answer, ask, grade, side_by_side
from rftkit.evals.scores import best_constant, score

__all__ = ["Answer", "ask", "best_constant", "grade", "score", "side_by_side"]
