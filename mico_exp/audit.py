"""Set what the attacks prove of ε beside what is claimed: ``python -m mico_exp.audit``."""

from mico_exp.cli import launch

if __name__ == "__main__":
    launch("audit", error_status=2)
