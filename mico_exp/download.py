"""Fetch the competition's models: ``python -m mico_exp.download``."""

from mico_exp.commands.download import main
from mico_exp.common import process

if __name__ == "__main__":
    process.run(main)
