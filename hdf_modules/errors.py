"""The one exception of the library and the one sentence it speaks."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class HDFError(ValueError):
    """A bad argument, named, with what was expected, what was found and the way out.

    Args:
        argument: name of the offending argument, as the caller wrote it.
        expected: what the argument should have been.
        found: what it was.
        hint: what to do about it, where there is one way out.

    Example:
        >>> raise HDFError("rho", "a number > 0", -1.0, "the paper uses 0.05")
        Traceback (most recent call last):
        ...
        hdf_modules.errors.HDFError: rho: expected a number > 0, found -1.0; the paper uses 0.05
    """

    def __init__(self, argument: str, expected: str, found: Any, hint: str = "") -> None:
        # All four reach BaseException.args, so that the error survives pickling between processes.
        super().__init__(argument, expected, found, hint)
        self.argument, self.expected, self.found, self.hint = argument, expected, found, hint

    def __str__(self) -> str:
        tail = f"; {self.hint}" if self.hint else ""
        return f"{self.argument}: expected {self.expected}, found {self.found}{tail}"


def choose(argument: str, value: Any, options: tuple[Any, ...]) -> Any:
    """Return ``value`` if it is one of ``options``, else raise with the options listed."""
    if value not in options:
        raise HDFError(argument, "one of " + ", ".join(map(repr, options)), repr(value))
    return value


def at_least(argument: str, value: Any, minimum: int) -> int:
    """Return ``value`` if it is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise HDFError(argument, f"an integer >= {minimum}", repr(value))
    return value


def former_keywords(
    **spelling: str,
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Refuse the keywords of former releases, saying how each is written now; a decorator."""

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @wraps(function)
        def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            for name in kwargs.keys() & spelling.keys():
                raise HDFError(name, spelling[name], f"{name}={kwargs[name]!r}, as in 0.1")
            return function(*args, **kwargs)

        return checked

    return decorate
