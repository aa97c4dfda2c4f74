"""Look at what a model does with one sample, and leave no trace."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from hdf_modules.backbones.hooks import CHILD, target_of
from hdf_modules.backbones.nested import tensors_in
from hdf_modules.backbones.stage import Stage
from hdf_modules.errors import HDFError


@dataclass
class Observation:
    """What one forward showed.

    Args:
        outputs: every output of the watched modules, by name.
        last: the watched module that was called last.
        gradient: of the result with respect to that module's output; ``None`` is zero.
        unread: watched modules whose output nothing depends on.
        looping: watched modules that call whatever children they have.
    """

    outputs: dict[str, list[Any]]
    last: str | None = None
    gradient: Tensor | None = None
    unread: set[str] = field(default_factory=set)
    looping: set[str] = field(default_factory=set)

    def leaves_unread(self, stage: Stage, num_frames: int) -> bool:
        """Whether nothing behind the stage reads the positions that attention would gate.

        So it is after the last block of a transformer whose classifier reads the class token
        alone, and where a module returns a copy of its output for others than the module behind.
        """
        if self.last != stage.name:
            return stage.name in self.unread
        if self.gradient is None:
            return True
        axes = stage.axes(self.outputs[stage.name][-1], num_frames)
        return not bool(axes.clip_view(self.gradient).any())


class Stowaway(nn.Module):
    """Stands where attention will be, and tells if the module calls it as one of its children."""

    def __init__(self, name: str, looping: set[str]) -> None:
        super().__init__()
        self.name, self.looping = name, looping

    def forward(self, x: Any, *_: Any, **__: Any) -> Any:
        """Tell, and change nothing."""
        self.looping.add(self.name)
        return x


def observe(model: nn.Module, example: Any, stages: Sequence[Stage | str]) -> Observation:
    """Run one evaluation forward and return what the stages gave.

    The graph starts anew at every stage, so that only the piece behind the last is differentiated.
    Training flags, buffers, ``requires_grad`` and random state are as before afterwards.

    Args:
        model: on any device but ``meta``.
        example: a tensor, a tuple of arguments or a dictionary of keyword arguments.
        stages: what to watch, stages or names of modules.

    Raises:
        HDFError: if the model cannot take the example.
    """
    args, kwargs = arguments(model, example)
    watched = [Stage(s, 1) if isinstance(s, str) else s for s in stages]
    trail = _Trail(Observation({stage.name: [] for stage in watched}))
    with (
        undisturbed(model),
        trail.laid(model, watched),
        torch.enable_grad(),
        without_checkpointing(),
    ):
        with accepted():
            result = model(*args, **kwargs)
        return trail.followed([*tensors_in(result), *trail.linear_input])


class _Trail:
    """What the hooks leave behind: where the graph was cut, what a linear layer read last."""

    def __init__(self, seen: Observation) -> None:
        self.seen = seen
        self.leaves: dict[str, Tensor] = {}
        self.ends: list[Tensor] = []
        self.linear_input: tuple[Tensor, ...] = ()

    @contextmanager
    def laid(self, model: nn.Module, stages: list[Stage]) -> Iterator[None]:
        """Watch the stages and the linear layers of a model."""
        with ExitStack() as stack:
            for stage in stages:
                target, module = target_of(model, stage), model.get_submodule(stage.name)
                target.add_module(CHILD, Stowaway(stage.name, self.seen.looping))
                stack.callback(delattr, target, CHILD)
                handle = module.register_forward_hook(partial(self.cut, stage))
                stack.callback(handle.remove)
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    stack.callback(module.register_forward_pre_hook(self.note_input).remove)
            yield

    def cut(self, stage: Stage, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook: remember the output, and let a new graph start there."""
        self.seen.outputs[stage.name].append(output)
        self.seen.last = stage.name
        try:
            x, _ = stage.read(output)
        except HDFError:
            return None  # the check of the stage says it better
        if not x.is_floating_point():
            return None
        self.ends.append(x)
        leaf = self.leaves[stage.name] = x.detach().requires_grad_()
        # A copy, as code behind may write into it, which a leaf does not allow.
        return stage.write(output, leaf.clone())

    def note_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of a linear layer."""
        self.linear_input = args[:1]

    def followed(self, ends: list[Tensor]) -> Observation:
        """Return what was seen, with what the result and the last linear layer depend on.

        That layer counts apart, because its weight may be 0.
        """
        read = leaves_behind([*ends, *self.ends])
        self.seen.unread = {name for name, leaf in self.leaves.items() if id(leaf) not in read}
        last = self.leaves.get(str(self.seen.last))
        differentiable = [end for end in ends if end.requires_grad]
        if last is not None and differentiable:
            # Weights of no pattern: after a LayerNorm a plain sum would have no gradient.
            weights = [sample(*end.shape).to(end) for end in differentiable]
            (self.seen.gradient,) = torch.autograd.grad(
                differentiable, last, weights, allow_unused=True
            )
        return self.seen


def leaves_behind(ends: list[Tensor]) -> dict[int, Tensor]:
    """Return the leaves that the ends depend on, by identity, without computing gradients."""
    nodes = [end.grad_fn for end in ends if end.grad_fn is not None]
    seen = set(nodes)
    leaves = {id(end): end for end in ends if end.is_leaf}
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node.variable
        before = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= before
        nodes += before
    return leaves


def sample(*shape: int) -> Tensor:
    """Return a clip or an image to look at a model with, between -1 and 1.

    It is not constant, because zeros stay zeros in a network that is not trained yet, and nothing
    behind them would get a gradient; nor random, so that random states are left alone.
    """
    return torch.arange(1, math.prod(shape) + 1).sin().view(shape)


@contextmanager
def accepted() -> Iterator[None]:
    """Say that it is the example's fault if the model fails."""
    try:
        yield
    except HDFError:
        raise
    except Exception as error:  # whatever the user's model raises
        first_line = str(error).strip().split("\n", 1)[0]
        raise HDFError(
            "example",
            "a sample that the model accepts",
            f"{type(error).__name__}: {first_line}",
            "give one with example=",
        ) from error


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode; restore flags, buffers and the random state."""
    flags = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    device = device_of(model)
    try:
        # So that nothing a model caches carries a graph.
        for parameter in trainable:
            parameter.requires_grad_(False)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            model.eval()
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        # Some models (levit, tiny_vit) drop what they cached for evaluation in train() alone.
        model.train()
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """Let gradient checkpointing call its function plainly.

    Re-entrant, it would hide the graph; otherwise it would call every hook again in backward.
    """

    class Plain:
        @staticmethod
        def apply(function: Any, preserve: bool, *args: Any) -> Any:
            return function(*args)

    def plain(*args: Any, **kwargs: Any) -> Generator[None, None, None]:
        yield

    stand_ins = {
        "CheckpointFunction": Plain,
        "_checkpoint_without_reentrant_generator": plain,
    }
    with ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            if hasattr(torch.utils.checkpoint, name):
                stack.enter_context(patch.object(torch.utils.checkpoint, name, stand_in))
        yield


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the type of the model's first floating-point parameter."""
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floating, torch.get_default_dtype())


def arguments(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Sort the example into arguments, on the model's device and in its precision."""
    device, dtype = device_of(model), dtype_of(model)

    def place(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(place(item) for item in value)
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype if value.is_floating_point() else None)

    if isinstance(example, Mapping):
        return (), {name: place(value) for name, value in example.items()}
    return place(tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}
