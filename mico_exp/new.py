"""Begin the option file of a data set of one's own: ``python -m mico_exp.new``."""

from mico_exp.commands.new import main
from mico_exp.common import process

if __name__ == "__main__":
    process.run(main)
