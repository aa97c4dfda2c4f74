"""How attention hangs on a model: the module that it follows, its hooks, the first forward.

Attention is a child named ``dam`` of the last module of its stage that is not an
``nn.Sequential``, and a module-level forward hook finds it there through its ``module`` argument.
So it is copied, pickled, moved, sharded and checkpointed with the stage, and is called wherever
the stage's last module is, also by code that walks through an ``nn.Sequential`` itself (timm's
gradient checkpointing).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hdf_modules.backbones.stage import Stage
from hdf_modules.errors import HDFError, nearest

CHILD = "dam"  # the name of attention among the children of its module
# What is noted on the modules: where attention is, how to remove it, the check that is due.
_STAGE, _HANDLES, _FIRST = "_hdf_stage", "_hdf_handles", "_hdf_first_forward"
_SEEN = "_hdf_seen"

Seen = tuple[int, int, int]  # T, H, W at a place, in the sample that attach looked at


def targets_of(model: nn.Module, stages: Sequence[Stage]) -> list[nn.Module]:
    """Return the module of each stage that attention is to follow."""
    targets = [target_of(model, stage) for stage in stages]
    if len({id(target) for target in targets}) < len(targets):
        names = [stage.name for stage in stages]
        hint = "drop one of the two: a Sequential ends with its last module"
        raise HDFError("stages", "each module once", names, hint)
    return targets


def target_of(model: nn.Module, stage: Stage) -> nn.Module:
    """Return the last module of the stage that is not an ``nn.Sequential``.

    Code that runs the blocks of an ``nn.Sequential`` itself, as gradient checkpointing does,
    never calls the container, so a hook there would be skipped.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if stage.name not in modules:
        hint = nearest(stage.name, modules)
        raise HDFError("stages", "names from model.named_modules()", repr(stage.name), hint)
    module = modules[stage.name]
    while (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and len(module) > 0
    ):
        module = module[-1]
    if isinstance(module, (nn.ModuleDict, nn.ModuleList, nn.Sequential)):
        refuse_looping(stage.name, module)
    if hasattr(module, CHILD):
        hint = "name the module before or after it"
        raise HDFError("stages", f"modules without an attribute {CHILD!r}", repr(stage.name), hint)
    return module


def refuse_looping(name: str, module: nn.Module) -> None:
    """Refuse a module whose forward would run attention as one of its own children."""
    raise HDFError(
        "stages",
        "modules that do not loop over their children",
        f"{name!r}, a {type(module).__name__}",
        "name the module before or after it, or the last of its children: attention would become "
        "one of them",
    )


def refuse_calls(name: str, calls: int) -> None:
    """Refuse a module that a forward calls never, or more than once."""
    if calls != 1:
        hint = "name a module that is called once"
        raise HDFError(
            f"stage {name!r}", "a module that a forward calls once", f"{calls} calls", hint
        )


def tie(target: nn.Module, stage: Stage, dam: nn.Module, seen: Seen | None = None) -> None:
    """Let ``dam`` gate every output of ``target``; ``seen`` are T, H, W there, if one was seen."""
    target.add_module(CHILD, dam)
    handles = (
        target.register_forward_hook(_gate_output),
        target.register_load_state_dict_pre_hook(_fill_absent_keys),
    )
    setattr(target, _STAGE, stage)
    setattr(target, _SEEN, seen)
    setattr(target, _HANDLES, handles)


def untie(target: nn.Module) -> None:
    """Undo `tie` exactly."""
    for handle in getattr(target, _HANDLES):
        handle.remove()
    for name in (CHILD, _STAGE, _SEEN, _HANDLES):
        delattr(target, name)


class Tie(NamedTuple):
    """Attention in a model: the name of the module it follows, that module, where, what."""

    name: str
    target: nn.Module
    stage: Stage
    dam: nn.Module
    seen: Seen | None


def ties(model: nn.Module) -> list[Tie]:
    """Return all attention in a model."""
    return [
        Tie(name, module, getattr(module, _STAGE), getattr(module, CHILD), vars(module).get(_SEEN))
        for name, module in model.named_modules()
        if hasattr(module, _STAGE)
    ]


def _gate_output(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook: replace the stage's output by the gated one."""
    stage: Any = getattr(module, _STAGE)
    x, sizes = stage.read(output)
    with at_stage(stage):
        gated = getattr(module, CHILD)(x, **sizes)
    if gated.shape != x.shape:
        raise HDFError(
            f"factory, at stage {stage.name!r}",
            f"a module that keeps the shape {tuple(x.shape)}",
            tuple(gated.shape),
        )
    return stage.write(output, gated)


@contextmanager
def at_stage(stage: Stage) -> Iterator[None]:
    """Let an error say at which stage it happened."""
    try:
        yield
    except HDFError as error:
        where = f"{error.argument} at stage {stage.name!r}"
        raise HDFError(where, error.expected, error.found, error.hint) from None


def _fill_absent_keys(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Pre-hook of ``load_state_dict``: a checkpoint from before attaching loads with strict=True.

    PyTorch hands its own shallow copy of the dictionary to the hook, so the user's is untouched.
    A checkpoint with only some of a DAM's keys is damaged and is left to fail.
    """
    own = getattr(module, CHILD).state_dict(prefix=f"{prefix}{CHILD}.")
    if own and not own.keys() & state_dict.keys():
        state_dict.update(own)
        # One sentence for all stages: Python shows a repeated warning once.
        warnings.warn(
            "the checkpoint has no weights for the attached attention, which keeps its own",
            stacklevel=2,
        )


class FirstForward:
    """The check of a model for which no sample is known: at its first forward.

    It counts the calls of stages and attention, and removes itself once they are right: until then
    every forward is refused. A compiled first forward is left alone, because counting would break
    its graph; so are the replicas of DataParallel, which share the hooks of the original.

    Args:
        model: the attached model to watch.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls: Counter[int] | None = None
        self.counters: list[RemovableHandle] = []
        self.handles = (
            model.register_forward_pre_hook(self.start),
            model.register_forward_hook(self.finish, always_call=True),
        )
        setattr(model, _FIRST, self)

    @staticmethod
    def forget(model: nn.Module) -> None:
        """Call the check off, if it has not happened yet."""
        check = getattr(model, _FIRST, None)
        if check is not None:
            for handle in check.handles:
                handle.remove()
            delattr(model, _FIRST)

    def start(self, model: nn.Module, args: Any) -> None:
        """Forward pre-hook: begin to count."""
        if torch.compiler.is_compiling() or getattr(model, "_is_replica", False):
            return
        self.calls = Counter()
        count = partial(_count, self.calls)
        watched = [module for found in ties(model) for module in (found.target, found.dam)]
        self.counters += [module.register_forward_hook(count) for module in watched]

    def finish(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forward hook, called after errors too: stop counting, compare, and go away."""
        while self.counters:
            self.counters.pop().remove()
        calls, self.calls = self.calls, None
        if calls is None or output is None:
            return
        for _, target, stage, dam, _ in ties(model):
            refuse_calls(stage.name, calls[id(target)])
            if calls[id(dam)] > 1:
                refuse_looping(stage.name, target)
        self.forget(model)


def _count(calls: Counter[int], module: nn.Module, args: Any, output: Any) -> None:
    calls[id(module)] += 1
