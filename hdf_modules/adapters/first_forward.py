"""The check of a model for which no sample is known: at its first forward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hdf_modules.adapters.checks import refuse_calls

_RECORD = "_hdf_first_forward"


class FirstForward:
    """Counts the calls of each stage in a model's first forward, then removes itself.

    A compiled first forward is left alone, because counting would break its graph; so are the
    replicas of DataParallel, which share the hooks of the original.

    Args:
        model: the model to watch.
        names: its stages.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.names = list(names)
        self.calls: dict[str, int] = {}
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
        self.calls = dict.fromkeys(self.names, 0)
        for name in self.names:
            hook = partial(_count, self.calls, name)
            self.counters.append(model.get_submodule(name).register_forward_hook(hook))

    def finish(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forward hook, called after errors too: stop counting, compare, and go away."""
        while self.counters:
            self.counters.pop().remove()
        calls, self.calls = self.calls, {}
        if not calls or output is None:
            return
        self.forget(model)
        for name, count in calls.items():
            refuse_calls(name, count)


def _count(calls: dict[str, int], name: str, module: nn.Module, args: Any, output: Any) -> None:
    calls[name] += 1
