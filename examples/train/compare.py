"""Compare runs on one page: paired curves, tables by class and by source.

python -m examples.train.compare runs/plain runs/full --output comparison.html
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.train.report.comparison import load_runs, write_comparison
from hdf_modules import HDFError


def main(arguments: list[str] | None = None) -> Path:
    """Run the command line; returns the page's path."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs; the first is the base")
    parser.add_argument(
        "--output", type=Path, default=Path("comparison.html"), help="page to write"
    )
    options = parser.parse_args(arguments)
    runs = load_runs(options.runs)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_comparison(options.output, runs)
    return options.output


if __name__ == "__main__":
    try:
        print(main())
    except HDFError as error:
        sys.exit(f"examples.train.compare: error: {error}")
