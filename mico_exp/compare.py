"""Say how far two scenarios' figures differ: ``python -m mico_exp.compare A B``."""

from mico_exp.cli import launch

if __name__ == "__main__":
    launch("compare", words=("first", "second"), error_status=2)
