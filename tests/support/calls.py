"""How many functions of the package one call walks through, and how many of its files."""

import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import hdf_modules

HOME = os.path.dirname(hdf_modules.__file__) + os.sep


class Calls(NamedTuple):
    """What was called: how often, in how many files, and in order, for a test that fails."""

    number: int
    files: int
    names: tuple[str, ...]


def count(function: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> Calls:
    """Run the function twice, each time after ``before``, and count what it calls the second time.

    A call is one entry of a function of the package, lambdas included; that of a generator or a
    context manager counts each time it goes on. Comprehensions and generator expressions are part
    of the line they stand in: they do not count, and Python 3.12 made functions of them no more.
    """
    before()
    function()
    before()
    called = []

    def note(frame: Any, event: str, _arg: Any) -> None:
        code = frame.f_code
        inline = code.co_name.startswith("<") and code.co_name != "<lambda>"
        if event == "call" and code.co_filename.startswith(HOME) and not inline:
            called.append((code.co_filename[len(HOME) :], code.co_name))

    previous = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(previous)
    names = tuple(f"{file}: {name}" for file, name in called)
    return Calls(len(called), len({file for file, _ in called}), names)
