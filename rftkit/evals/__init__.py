"""Evals from the client's side: ask models the same questions."""

from rftkit.evals.answers import Answer, ask

__all__ = ["Answer", "ask"]
