"""Build the models of an embedded challenge: ``python -m mico_exp.build``."""

from mico_exp.cli import launch

if __name__ == "__main__":
    launch("build")
