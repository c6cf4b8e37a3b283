"""A model on its way out: written for another tool, loaded again by that tool, and compared."""
