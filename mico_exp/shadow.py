"""Train reference models for a scenario that is there: ``python -m mico_exp.shadow``."""

from mico_exp.cli import launch

if __name__ == "__main__":
    launch("shadow")
