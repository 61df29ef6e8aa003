"""Score a submission whose truth is known: ``python -m mico_exp.score``."""

import sys

from mico_exp.commands.score import main

if __name__ == "__main__":
    sys.exit(main())
