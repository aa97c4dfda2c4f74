"""How an attention module is tied to the module it follows, and untied again.

It is a child named ``dam`` of the last module of the stage that is not an ``nn.Sequential``, and a
module-level forward hook finds it there through its ``module`` argument. So it is copied, pickled,
moved, sharded and checkpointed with the stage, and is called wherever the stage's last module is,
also by code that walks through an ``nn.Sequential`` itself (timm's gradient checkpointing).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hdf_modules.backbones.stage import Stage
from hdf_modules.backbones.targets import CHILD
from hdf_modules.errors import HDFError

_RECORD = "_hdf_attachment"


@dataclass
class Attachment:
    """What a module remembers about the attention tied to it."""

    stage: Stage
    handles: tuple[RemovableHandle, ...]


def bind(target: nn.Module, stage: Stage, dam: nn.Module) -> None:
    """Let ``dam`` gate every output of ``target``."""
    target.add_module(CHILD, dam)
    handles = (
        target.register_forward_hook(gate_output),
        target.register_load_state_dict_pre_hook(fill_absent_keys),
    )
    setattr(target, _RECORD, Attachment(stage, handles))


def unbind(target: nn.Module) -> None:
    """Undo :func:`bind` exactly."""
    for handle in attachment_of(target).handles:
        handle.remove()
    delattr(target, CHILD)
    delattr(target, _RECORD)


def attachment_of(module: nn.Module) -> Any:
    """Return the module's :class:`Attachment`, or ``None``."""
    return getattr(module, _RECORD, None)


def attached_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the name and the module of everything that attention is tied to."""
    for name, module in model.named_modules():
        if attachment_of(module) is not None:
            yield name, module


def gate_output(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook: replace the stage's output by the gated one."""
    stage = attachment_of(module).stage
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


def fill_absent_keys(
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
