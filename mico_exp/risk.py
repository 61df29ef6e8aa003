"""Say which records are at risk: ``python -m mico_exp.risk``."""

from mico_exp.cli import launch

if __name__ == "__main__":
    launch("risk", error_status=2)
