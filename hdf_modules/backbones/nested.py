"""Tensors in nested arguments and results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def mapped(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function to every tensor of nested containers."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: mapped(item, function) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return _filled(value, (mapped(item, function) for item in value))
    return value


def exchanged(value: Any, old: Tensor, new: Tensor) -> Any:
    """Return nested tuples and lists with one tensor exchanged."""
    if value is old:
        return new
    if isinstance(value, (tuple, list)):
        return _filled(value, (exchanged(item, old, new) for item in value))
    return value


def _filled(like: Any, items: Iterator[Any]) -> Any:
    """Return items in a tuple or list of that type; named tuples take them one by one."""
    return type(like)(*items) if hasattr(like, "_fields") else type(like)(items)
