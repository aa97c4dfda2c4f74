"""Run :mod:`examples.train.run` from the command line."""

import sys

from examples.train.run import main
from hdf_modules import HDFError

if __name__ == "__main__":
    try:
        main()
    except HDFError as error:
        sys.exit(f"examples.train: error: {error}")
