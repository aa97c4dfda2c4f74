"""Attention as two operators that compilers take as they are, wherever kernels may compute it.

`hdf_modules::attend` and `hdf_modules::attend_backward`: what runs in them is decided when they are
called, as outside of compilers, and where kernels fail it is the equations.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hdf_modules.attention import choice, functional, running
from hdf_modules.attention.constants import nothing_kept
from hdf_modules.attention.kernels.plan import Kept, flat_of, kept_of, numbers, shaped
from hdf_modules.attention.layout import BoundLayout, Layout, Sizes
from hdf_modules.attention.weights import AttentionOptions, AttentionWeights

WEIGHTS, KEPT = len(AttentionWeights._fields), len(Kept._fields)
_HOW = "SymInt[] sizes, str pattern, int[] tokens, int bins, str consistency, int dct_size"
_OPTIONAL = ", ".join(f"Tensor? {name}" for name in AttentionWeights._fields)
_KEPT = ", ".join(f"Tensor kept_{name}" for name in Kept._fields)


def attend(
    x: Tensor, axes: BoundLayout, weights: AttentionWeights, options: AttentionOptions
) -> Tensor:
    """Multiply x by its gate, as `functional.attend` does."""
    layout = axes.layout
    how = list(axes.sizes), layout.pattern, [layout.prefix_tokens, layout.suffix_tokens], *options
    return torch.ops.hdf_modules.attend(x, *weights, *how)[0]


def _call(arguments: tuple[Any, ...]) -> tuple[BoundLayout, AttentionWeights, AttentionOptions]:
    """Put together again what an operator was given apart."""
    sizes, pattern, tokens, *options = arguments[WEIGHTS:]
    weights = AttentionWeights._make(arguments[:WEIGHTS])
    return _bound(Sizes(*sizes), pattern, *tokens), weights, AttentionOptions(*options)


@lru_cache(maxsize=1024)
def _bound(sizes: Sizes, pattern: str, prefix: int, suffix: int) -> BoundLayout:
    layout, lengths = Layout(pattern, prefix, suffix), dict(zip("btchw", sizes, strict=True))
    return BoundLayout(layout, sizes, tuple([lengths[axis] for axis in layout.axes]))


@nothing_kept()
def _forward(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    axes, weights, options = call = _call(arguments)
    with torch.autocast(x.device.type, enabled=False):
        launched = running.launched(x, *call) if choice.chosen(x, *call) else None
        if launched:
            return launched[0], *launched[1]
        y = torch.empty_like(x).copy_(functional.attend(x, *call))
    kept = kept_of(x, axes.sizes, len(weights.temporal_scale), options)
    return y, *[
        tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor.zero_() for tensor in kept
    ]


def _fake_forward(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    sizes, _, _, *options = arguments[WEIGHTS:]
    length = len(AttentionWeights._make(arguments[:WEIGHTS]).temporal_scale)
    return torch.empty_like(x), *kept_of(x, Sizes(*sizes), length, AttentionOptions(*options))


@nothing_kept()
def _backward(grad: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    kept, call, of_x = Kept._make(arguments[:KEPT]), _call(arguments[KEPT:-1]), arguments[-1]
    weights, options = call[1:]
    found = (
        running.by_kernels(grad, x, *call, kept=kept, of_x=of_x)
        if choice.chosen(x, *call)
        else None
    )
    if found is None:
        needed = [of_x, *(weight is not None for weight in weights)]
        with torch.autocast(x.device.type, enabled=False):
            first, *others = running.by_equations(grad, x, *call, needed=needed)
        found = first, *flat_of(others, weights, options)
    return x.new_empty(0) if found[0] is None else found[0], *found[1:]


def _fake_backward(grad: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    weights = AttentionWeights._make(arguments[KEPT : KEPT + WEIGHTS])
    *options, of_x = arguments[-4:]
    count = sum(numbers(len(weights.temporal_scale), AttentionOptions(*options)))
    readout = weights.frequency_readout
    of_weights = readout.new_empty(count), readout.new_empty(readout.flatten(2).shape[1:])
    return torch.empty_like(x) if of_x else x.new_empty(0), *of_weights


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: 1 + WEIGHTS], *output[1:])
    ctx.how = inputs[1 + WEIGHTS :]


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, *saved = ctx.saved_tensors
    weights, kept, of_x = saved[:WEIGHTS], saved[WEIGHTS:], ctx.needs_input_grad[0]
    call = grad, x, *kept, *weights, *ctx.how, of_x
    first, flat, of_readout = torch.ops.hdf_modules.attend_backward(*call)
    options = AttentionOptions(*ctx.how[-3:])
    found = [first, *shaped(flat, of_readout, AttentionWeights._make(weights), options)]
    needed = ctx.needs_input_grad[: 1 + WEIGHTS]
    grads = [g if need else None for g, need in zip(found, needed, strict=True)]
    return *grads, *(None for _ in ctx.how)


_library = torch.library.Library("hdf_modules", "DEF")
_all = ", ".join(["Tensor"] * (1 + KEPT))
_library.define(f"attend(Tensor x, {_OPTIONAL}, {_HOW}) -> ({_all})")
_given = f"Tensor grad, Tensor x, {_KEPT}, {_OPTIONAL}, {_HOW}, bool of_x"
_library.define(f"attend_backward({_given}) -> (Tensor, Tensor, Tensor)")
for _name, _run, _fake in (
    ("attend", _forward, _fake_forward),
    ("attend_backward", _backward, _fake_backward),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"hdf_modules::{_name}", _fake, lib=_library)
torch.library.register_autograd(
    "hdf_modules::attend", _differentiate, setup_context=_save, lib=_library
)
