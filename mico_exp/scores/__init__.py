"""From models and points to score columns."""
