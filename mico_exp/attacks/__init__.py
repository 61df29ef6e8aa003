"""From score columns to calibrated scores."""
