"""The one exception of the library, the one sentence it speaks, and the checks that raise it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

MAX_GROUPS = 2**16


class HDFError(ValueError):
    """A bad argument, named, with the way out, what was expected and what was found.

    Args:
        argument: name of the offending argument, as the caller wrote it.
        expected: what the argument should have been.
        found: what it was.
        hint: what to do about it, said first, where ``expected`` does not say it.

    A text alone is an error told again: torch makes one of the traceback of a loader's worker.

    Example:
        >>> raise HDFError("rho", "a number > 0", -1.0, "try 0.05")
        Traceback (most recent call last):
        ...
        hdf_modules.errors.HDFError: rho: try 0.05; expected a number > 0, found -1.0
    """

    def __init__(
        self, argument: str, expected: str = "", found: Any = None, hint: str = ""
    ) -> None:
        # All four reach BaseException.args, so that the error survives pickling between processes.
        super().__init__(argument, expected, found, hint)
        self.argument, self.expected, self.found, self.hint = argument, expected, found, hint

    def __str__(self) -> str:
        if not self.expected:
            return self.argument
        way_out = self.hint and f"{self.hint}{' ' if self.hint.endswith('?') else '; '}"
        return f"{self.argument}: {way_out}expected {self.expected}, found {self.found}"


def nearest(value: Any, names: Iterable[Any]) -> str:
    """Return a hint at the names that a misspelt one may stand for; empty if none is near.

    Example:
        >>> nearest("chi-2", ("kl", "chi2", "cvar"))
        "did you mean 'chi2'?"
    """
    near = difflib.get_close_matches(str(value), [n for n in names if isinstance(n, str)], n=3)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


def some(names: Collection[str], count: int = 3) -> str:
    """Return the first of many names, so that the way out behind them is seen.

    Example:
        >>> some(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(list(names)[:count]) + more


def keys_apart(expected: Iterable[str], found: Iterable[str]) -> str:
    """Say which keys of a state dict are missing and which unknown; empty if none are.

    Example:
        >>> keys_apart(["a", "b"], ["b", "c"])
        '1 missing (a), 1 unknown (c)'
    """
    kinds = {"missing": set(expected) - set(found), "unknown": set(found) - set(expected)}
    parts = [f"{len(keys)} {kind} ({some(sorted(keys))})" for kind, keys in kinds.items() if keys]
    return ", ".join(parts)


def choose(argument: str, value: Any, options: tuple[Any, ...]) -> Any:
    """Return ``value`` if it is one of ``options``, else raise with the options listed."""
    if value not in options:
        expected = "one of " + ", ".join(map(repr, options))
        raise HDFError(argument, expected, repr(value), nearest(value, options))
    return value


def at_least(argument: str, value: Any, minimum: int, *, or_none: bool = False) -> Any:
    """Return ``value`` if it is an integer of at least ``minimum``, or None where that may be."""
    if value is None and or_none:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise HDFError(argument, f"an integer >= {minimum}{' or None' * or_none}", repr(value))
    return value


def number(argument: str, value: Any, *, zero: bool = False) -> float:
    """Return ``value`` as a float if it is finite and positive, or 0 where ``zero`` allows it."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (real and (value >= 0 if zero else value > 0) and value < math.inf):
        raise HDFError(argument, f"a finite number {'>=' if zero else '>'} 0", value)
    return float(value)


def share(argument: str, value: Any, *, one: bool = False) -> float:
    """Return ``value`` as a float if it is in [0, 1), or [0, 1] where ``one`` allows it."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (real and value >= 0 and (value <= 1 if one else value < 1)):
        raise HDFError(argument, f"a share in [0, 1{']' if one else ')'}", value)
    return float(value)


class Checks(list[tuple[Tensor, Callable[[], HDFError]]]):
    """Where something is wrong and how to say it, found on the device and read together.

    Example:
        >>> Checks([(torch.tensor([2, 9]) > 7, lambda: HDFError("ids", "at most 7", 9))]).read()
        Traceback (most recent call last):
        ...
        hdf_modules.errors.HDFError: ids: expected at most 7, found 9
    """

    def read(self, *numbers: Tensor) -> list[int]:
        """Raise the first error, else return these integers too; a host waits once."""
        made = self.copy()
        self.clear()  # said once, whatever is raised
        if not made and not numbers:
            return []
        device = numbers[0].device if numbers else made[0][0].device
        scalars = [*[wrong.any() for wrong, _ in made], *numbers]
        whole = torch.stack([each.detach().to(device, torch.int64) for each in scalars])
        # Function transforms hand numbers out one at a time.
        looked_into = torch._C._are_functorch_transforms_active()
        found: list[int] = [int(each) for each in whole] if looked_into else whole.tolist()
        for wrong, (_, error) in zip(found, made, strict=False):
            if wrong:
                raise error()
        return found[len(made) :]


def check_losses(losses: Tensor) -> None:
    """Raise unless ``losses`` is a vector of finite real numbers."""
    if losses.ndim != 1 or not losses.is_floating_point():
        found = f"shape {tuple(losses.shape)}, {losses.dtype}"
        raise HDFError(
            "losses", "a floating point tensor of shape (n,)", found, "give one a sample"
        )
    check_finite("losses", losses)


def check_finite(argument: str, rows: Tensor, checks: Checks | None = None) -> None:
    """Raise, naming the rows, unless every value is finite; where checks are read, if given."""
    rows = rows.detach()
    finite = torch.isfinite(rows).flatten(1).all(1) if rows.ndim > 1 else rows.isfinite()

    def error() -> HDFError:
        indices = (~finite).nonzero().flatten().tolist()
        more = f" and {len(indices) - 10} more" if len(indices) > 10 else ""
        found = f"inf or NaN at index {', '.join(map(str, indices[:10]))}{more}"
        hint = "look at these samples and the learning rate"
        return HDFError(argument, "finite values", found, hint)

    made = ~finite, error
    checks.append(made) if checks is not None else Checks([made]).read()


def check_features(features: Tensor) -> None:
    """Raise unless ``features`` is a floating point matrix."""
    if features.ndim != 2 or not features.is_floating_point():
        found = f"shape {tuple(features.shape)}, {features.dtype}"
        hint = "give one row a sample, as with_features(model) does"
        raise HDFError("features", "a floating point tensor of shape (N, D)", found, hint)


def check_labels(target: Tensor, length: int) -> None:
    """Raise unless ``target`` holds class ids (length,) or soft labels (length, K)."""
    integer = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
    soft = target.is_floating_point() and target.ndim == 2
    if not (integer and target.ndim == 1) and not soft:
        found = f"shape {tuple(target.shape)}, {target.dtype}"
        expected = "integer class ids (N,) or floating point soft labels (N, K)"
        raise HDFError("target", expected, found)
    if len(target) != length:
        raise HDFError("target", f"{length} labels, one for each feature", len(target))


def check_groups(groups: Tensor, length: int, checks: Checks | None = None) -> None:
    """Raise unless ``groups`` holds ``length`` group ids in range, that where checks are read."""
    if groups.ndim != 1 or groups.is_floating_point() or groups.is_complex():
        found = f"{tuple(groups.shape)}, {groups.dtype}"
        raise HDFError("groups", "integer ids of shape (B,)", found, "number the groups from 0")
    if len(groups) != length:
        raise HDFError("groups", f"{length} ids, one for each sample", len(groups))
    ids = groups.long()  # small types cannot be compared with the limit
    outside = (ids < 0) | (ids >= MAX_GROUPS)

    def error() -> HDFError:
        expected = f"ids in 0 .. {MAX_GROUPS - 1}"
        return HDFError("groups", expected, int(ids[outside][0]), "number the groups from 0")

    made = outside, error
    checks.append(made) if checks is not None else Checks([made]).read()


def check_soft_labels(
    labels: Tensor, *, shares: bool, hint: str = "", checks: Checks | None = None
) -> None:
    """Raise unless soft labels (N, K) are shares of one whole in each row, or each in [0, 1]."""
    rows = labels.detach().float()
    beyond = (rows.sum(1) - 1).abs() > 1e-2 if shares else (rows > 1).any(1)  # half precision
    wrong = (rows < 0).any(1) | beyond

    def error() -> HDFError:
        index = int(wrong.nonzero()[0])
        expected = ">= 0 that sum to 1 in each row" if shares else "in [0, 1]"
        found = f"{[round(value, 4) for value in rows[index].tolist()]} in row {index}"
        return HDFError("target", f"soft labels {expected}", found, hint)

    made = wrong, error
    checks.append(made) if checks is not None else Checks([made]).read()


def check_batch(
    logits: Tensor,
    target: Tensor,
    features: Tensor | None,
    groups: Tensor | None,
    checks: Checks,
) -> None:
    """Raise unless a loss can take these together; their values are checked where checks are."""
    optional = (("features", features), ("groups", groups))
    for argument, value in (("logits", logits), ("target", target), *optional):
        if not isinstance(value, Tensor) and (
            value is not None or argument in ("logits", "target")
        ):
            hint = "make one of lists and arrays by torch.as_tensor(…)"
            raise HDFError(argument, "a tensor", type(value).__name__, hint)
    if not logits.is_floating_point():
        raise HDFError("logits", "a floating point tensor", logits.dtype)
    if logits.ndim == 0 or target.ndim == 0 or len(target) != len(logits):
        found = f"{tuple(target.shape)} and {tuple(logits.shape)}"
        raise HDFError(
            "target", "as many targets as logits", found, "give both of the same samples"
        )
    if groups is not None:
        check_groups(groups, len(logits), checks)
    if features is not None:
        check_features(features)
        if len(features) != len(logits):
            raise HDFError("features", f"{len(logits)} rows, one for each sample", len(features))
        check_finite("features", features, checks)


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
