"""Exports: write a model for another tool, load it again with that tool, and compare the two."""
