"""Eval runs on the platform: sample, grade, keep the output items."""
