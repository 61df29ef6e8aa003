"""From calibrated scores to figures, a choice and a submission."""
