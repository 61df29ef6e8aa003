"""List, verify or prune the stored scores: ``python -m mico_exp.store list``."""

from mico_exp.cli import launch

if __name__ == "__main__":
    launch("store", words=("action",))
