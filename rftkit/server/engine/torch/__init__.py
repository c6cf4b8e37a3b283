"""The embedded engine: a transformers decoder on one device, sampled and trained."""
