"""Eval runs on the platform: sample, grade, store the output items."""
