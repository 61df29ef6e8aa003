"""Attack trained models, one cell of the grid or with ``-m`` all: ``python -m mico_exp``."""

from mico_exp.cli import launch

if __name__ == "__main__":
    launch("attack", config="config")
