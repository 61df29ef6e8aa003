"""Look for what keeps an attack from running: ``python -m mico_exp.doctor``."""

from mico_exp.cli import launch

if __name__ == "__main__":
    launch("doctor")
