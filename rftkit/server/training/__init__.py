"""What one job does: plan, sample, grade, update, validate, keep checkpoints, survive a kill."""
