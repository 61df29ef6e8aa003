"""Score a submission whose truth is known: ``python -m mico_exp.score``."""

from mico_exp.commands.score import main
from mico_exp.common import process

if __name__ == "__main__":
    process.run(main)
