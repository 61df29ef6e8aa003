"""How models are trained, with and without differential privacy, and written as a challenge."""
