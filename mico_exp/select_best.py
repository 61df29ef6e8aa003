"""Choose the best cell of every scenario: ``python -m mico_exp.select_best``."""

from mico_exp.cli import launch

if __name__ == "__main__":
    launch("select_best")
