"""Write what was found onto one page: ``python -m mico_exp.report``."""

from mico_exp.cli import launch

if __name__ == "__main__":
    launch("report")
