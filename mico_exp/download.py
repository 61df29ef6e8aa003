"""Fetch the competition's models: ``python -m mico_exp.download``."""

import sys

from mico_exp.commands.download import main

if __name__ == "__main__":
    sys.exit(main())
