"""The command line: see :mod:`examples.train.options`, or run it with ``--help``."""

from examples.train.options import program
from examples.train.run import main

if __name__ == "__main__":
    program(main)
