"""The check of a model for which no sample is known: at its first forward."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hdf_modules.backbones.binding import attached_modules, attachment_of
from hdf_modules.backbones.checks import refuse_calls
from hdf_modules.backbones.targets import CHILD, refuse_looping

_RECORD = "_hdf_first_forward"


class FirstForward:
    """Counts the calls of stages and attention in a model's first forward, then removes itself.

    A compiled first forward is left alone, because counting would break its graph; so are the
    replicas of DataParallel, which share the hooks of the original.

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
        setattr(model, _RECORD, self)

    @staticmethod
    def forget(model: nn.Module) -> None:
        """Call the check off, if it has not happened yet."""
        check = getattr(model, _RECORD, None)
        if check is not None:
            for handle in check.handles:
                handle.remove()
            delattr(model, _RECORD)

    def start(self, model: nn.Module, args: Any) -> None:
        """Forward pre-hook: begin to count."""
        if torch.compiler.is_compiling() or getattr(model, "_is_replica", False):
            return
        self.calls = Counter()
        for _, target in attached_modules(model):
            for module in (target, getattr(target, CHILD)):
                hook = partial(_count, self.calls)
                self.counters.append(module.register_forward_hook(hook))

    def finish(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forward hook, called after errors too: stop counting, compare, and go away."""
        while self.counters:
            self.counters.pop().remove()
        calls, self.calls = self.calls, None
        if calls is None or output is None:
            return
        self.forget(model)
        for _, target in attached_modules(model):
            name = attachment_of(target).stage.name
            refuse_calls(name, calls[id(target)])
            if calls[id(getattr(target, CHILD))] > 1:
                refuse_looping(name, target)


def _count(calls: Counter[int], module: nn.Module, args: Any, output: Any) -> None:
    calls[id(module)] += 1
