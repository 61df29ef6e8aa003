"""Let a release pass or not: ``python -m mico_exp.gate max_tpr=0.15``."""

from mico_exp.cli import launch

if __name__ == "__main__":
    launch("gate", error_status=2)
