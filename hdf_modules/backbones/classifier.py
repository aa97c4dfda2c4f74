"""Find what a classifier reads, and which of its positions belong to which row of the logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hdf_modules.backbones.nested import exchanged, mapped, tensors_in
from hdf_modules.backbones.probe import leaves_behind, sample, undisturbed, without_checkpointing
from hdf_modules.errors import HDFError, some

_OTHER = "name another module"
_WAY_OUT = "name the module that gives the features: with_features(model, 'name')"


class Rows(NamedTuple):
    """Where the rows of the logits are among the features: an axis, perhaps with more in it.

    ``outer``: positions of a row follow each other there, as frames in ``(b t)``; else rows do.
    """

    axis: int
    outer: bool = True

    def split(self, x: Tensor, count: int) -> Tensor:
        """Return x as (rows, positions, the other axes in their order)."""
        x = x.unflatten(self.axis, (count, -1) if self.outer else (-1, count))
        pair = (self.axis, self.axis + 1)
        return x.movedim(pair if self.outer else pair[::-1], (0, 1))


class Call(NamedTuple):
    """One call of a module: the shapes of what it read and gave, and where a graph began anew."""

    name: str
    read: torch.Size
    gave: torch.Size
    leaf: int


def logits_in(result: Any) -> Tensor:
    """Return the logits among what a model gives: those called so, else the first tensor."""
    named = result.get("logits") if isinstance(result, Mapping) else None
    found = named if isinstance(named, Tensor) else next(tensors_in(result), None)
    if found is None or not found.is_floating_point():
        kind = type(result).__name__ if found is None else str(found.dtype)
        raise HDFError("model", "one whose forward gives logits", kind)
    return found


def count_rows(logits: Tensor, x: torch.Size) -> int:
    """Return how many rows logits have; one-dimensional ones may be a single row."""
    if logits.ndim == 0 or len(x) == 1:
        return 1
    rows = len(logits)
    single = logits.ndim == 1 and all(size % max(rows, 1) for size in x[:-1])
    return 1 if single else rows


@torch.inference_mode(False)
@torch.enable_grad()
def find_classifier(model: nn.Module, args: Any, kwargs: Any) -> tuple[str, Rows | None]:
    """Find the layer that everything between the input and the logits passes last.

    timm's ``get_classifier()`` is believed, where it is called.

    Returns:
        Its name, and where the rows of the logits are in what it reads: ``None`` while there is
        but one row.

    Raises:
        HDFError: if the logits are made by several layers, by none, or have other rows.
    """
    declared = declared_classifier(model)
    if declared is not None:
        with _traced(model, args, kwargs, [declared]) as (calls, leaves, logits):
            if len(calls) == 1:
                return declared, _rows(calls[0].read, calls[0], leaves, logits)
    weighted = [name for name, module in model.named_modules() if _has_weights(module)]
    with _traced(model, args, kwargs, weighted) as (calls, leaves, logits):
        at = {call.leaf: call for call in calls}  # of one identity the last: others are gone
        last = [call for leaf, call in at.items() if leaf in leaves]
        if len(last) != 1:
            names = list(dict.fromkeys(repr(call.name) for call in last)) or ["none"]
            expected = "logits made by one layer with weights"
            raise HDFError("model", expected, some(names[::-1]), _WAY_OUT)
        return last[0].name, _rows(last[0].read, last[0], leaves, logits)


@torch.inference_mode(False)
@torch.enable_grad()
def find_rows(model: nn.Module, name: str, *, gives: bool, args: Any, kwargs: Any) -> Rows | None:
    """Find the rows of the logits in what a module gives, or in what it reads.

    Raises:
        HDFError: if it is not called exactly once, or the rows are not there.
    """
    argument = "features" if gives else "classifier"
    with _traced(model, args, kwargs, [name]) as (calls, leaves, logits):
        if len(calls) != 1:
            found = f"{name!r} with {len(calls)} calls"
            raise HDFError(
                argument, "a module that the forward calls once, with tensors", found, _OTHER
            )
        (call,) = calls
        leaf = leaves.get(call.leaf)
        if leaf is None:
            raise HDFError(argument, "a module that the logits depend on", repr(name), _OTHER)
        if gives and leaf.shape == logits.shape and torch.equal(leaf, logits):
            hint = f"take what it reads by with_features(model, classifier={name!r})"
            found = f"{name!r}, which gives them"
            raise HDFError(argument, "a module before the logits", found, hint)
        return _rows(call.gave if gives else call.read, call, leaves, logits)


def declared_classifier(model: nn.Module) -> str | None:
    """Return the name of the layer that timm's ``get_classifier()`` returns, if there is one."""
    layer: Any = None
    with suppress(AttributeError, TypeError):  # a method of that name may want something else
        layer = model.get_classifier()  # type: ignore[operator]
    if isinstance(layer, (tuple, list, nn.ModuleList)) and len(layer):
        layer = layer[0]  # distilled: class token first
    if isinstance(layer, nn.Identity):
        raise HDFError(
            "model", "a model with a classifier", "num_classes=0", "give it num_classes="
        )
    return next((name for name, module in model.named_modules() if module is layer), None)


def _rows(
    shape: torch.Size, call: Call, leaves: Mapping[int, Tensor], logits: Tensor
) -> Rows | None:
    """Find the rows of the logits in a tensor of this shape, which the call read or gave.

    Each row of the logits must depend on its own positions and on no other row's: the first and
    the last are differentiated with respect to what the call gave, because a classifier's weights
    may all be 0.
    """
    count = count_rows(logits, shape)
    if count <= 1:
        return None
    kept = len(shape) == len(call.gave) and shape[:-1] == call.gave[:-1]
    # Where positions were not kept, only the batch is known to stay where it was.
    axes = range(len(shape) if kept else 1)
    possible = [
        Rows(axis, outer)
        for axis in axes
        if shape[axis] == call.gave[axis] and shape[axis] % count == 0
        for outer in ((True, False) if shape[axis] > count else (True,))
    ]
    read = {row: _read(leaves[call.leaf], logits[row]) for row in (0, count - 1)}
    if any(bool(where.any()) for where in read.values()):
        possible = [
            rows
            for rows in possible
            if all(_others(rows.split(where, count), row) for row, where in read.items())
        ]
    # Both orders fit where one position of each row is read: frames that follow each other then.
    if possible and len({rows.axis for rows in possible}) == 1:
        return possible[0]
    expected = f"{count} rows of features, each read by its own row of the logits alone"
    raise HDFError("model", expected, f"shape {tuple(shape)} at {call.name!r}", _WAY_OUT)


def _others(read: Tensor, row: int) -> bool:
    """Whether nothing of the other rows was read."""
    rows = read.flatten(1).any(1)
    rows[row] = False
    return not bool(rows.any())


def _read(leaf: Tensor, row: Tensor) -> Tensor:
    """Return which elements of the leaf a row of the logits depends on."""
    weights = sample(*row.shape).to(row) + 2  # of no pattern: a softmax's sum has no gradient
    (grad,) = torch.autograd.grad(row, leaf, weights, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf, dtype=torch.bool) if grad is None else grad != 0


@contextmanager
def _traced(
    model: nn.Module, args: Any, kwargs: Any, names: list[str]
) -> Iterator[tuple[list[Call], dict[int, Tensor], Tensor]]:
    """Run the model with a new graph at every call of the modules.

    Yields:
        The calls, the tensors where the logits' graph begins, by identity, and the logits.
    """
    calls: list[Call] = []
    with (
        undisturbed(model),
        without_checkpointing(),
        _cut(model, names, calls),
    ):
        logits = logits_in(model(*_differentiable(args), **_differentiable(kwargs)))
        yield calls, leaves_behind([logits]), logits


@contextmanager
def _cut(model: nn.Module, names: list[str], calls: list[Call]) -> Iterator[None]:
    """Note the calls of modules, but of those in whose call another was called."""
    before: list[int] = []

    def enter(module: nn.Module, args: Any) -> None:
        before.append(len(calls))

    def leave(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        inner = len(calls) - before.pop()
        x, y = next(tensors_in((args, kwargs)), None), next(tensors_in(output), None)
        if inner or x is None or y is None or not y.is_floating_point():
            return None
        leaf = y.detach().requires_grad_()
        # Shapes and an identity alone: no activation is kept longer than in inference.
        calls.append(Call(name, x.shape, y.shape, id(leaf)))
        return exchanged(output, y, leaf.clone())  # a copy, as code behind may write into it

    with ExitStack() as stack:
        for name in names:
            module = model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(enter).remove)
            hook = module.register_forward_hook(partial(leave, name), with_kwargs=True)
            stack.callback(hook.remove)
        yield


def _differentiable(value: Any) -> Any:
    """Return nested arguments with no tensor of inference mode, of which no graph may be made."""
    if not any(x.is_inference() for x in tensors_in(value)):
        return value
    return mapped(value, lambda x: x.clone() if x.is_inference() else x)


def _has_weights(module: nn.Module) -> bool:
    """Whether a module multiplies by weights of its own; parametrised ones are not its own."""
    linear = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    return linear or any(p.ndim >= 2 for p in module.parameters(recurse=False))
