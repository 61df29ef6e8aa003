"""Compute the scores that cells need: ``python -m mico_exp.extract``."""

from mico_exp.cli import launch

if __name__ == "__main__":
    launch("extract")
