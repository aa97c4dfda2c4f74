"""What the library costs and what it buys: python -m benchmarks NAME [OPTION ...].

Run it from the root of the repository; `python -m benchmarks NAME --help` is the manual of one.
What is measured goes into records in benchmarks/NAME/results, each with its machine and versions;
tables and plots are drawn from the records alone.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from importlib import import_module
from pathlib import Path

from hdf_modules import HDFError

TOPICS = {
    name: import_module(f"benchmarks.{name}").__doc__ or ""
    for name in ("attention", "loss", "sam", "scaling", "evidence")
}


def main(arguments: list[str] | None = None) -> None:
    words = sys.argv[1:] if arguments is None else arguments
    parser = _parser("python -m benchmarks", __doc__ or "")
    lines = (f"  {name:10} {manual.splitlines()[0]}" for name, manual in TOPICS.items())
    parser.epilog = "\n".join(("what there is:", *lines))
    parser.add_argument("name", metavar="NAME", choices=TOPICS, help=f"one of {', '.join(TOPICS)}")
    name = parser.parse_args(words[:1]).name
    command = import_module(f"benchmarks.{name}.command")
    parser = _parser(f"python -m benchmarks {name}", TOPICS[name])
    command.add_options(parser.add_argument)
    results = Path(__file__).parent / name / "results"
    parser.add_argument("--output", type=Path, default=results, help="folder of the results")
    try:
        command.run(parser.parse_args(words[1:]))
    except (ArgumentTypeError, HDFError) as error:
        parser.error(str(error))


def _parser(program: str, manual: str) -> ArgumentParser:
    return ArgumentParser(
        prog=program, description=manual, formatter_class=RawDescriptionHelpFormatter
    )


if __name__ == "__main__":
    main()
